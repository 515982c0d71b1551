package concierge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	// Ports that are chosen for a caller who wants any.
	firstFreePort = 20000
	freePorts     = 40000
	portTries     = 16
)

// ListenVsock returns a listening socket for the guest's streams to a port of
// the host, or to one that is free when port is 0. Only this VM's streams
// arrive there. Whoever holds the socket holds the port, also while this
// service restarts.
func (s *Service) ListenVsock(ctx context.Context, sub policy.Subject, name string, port uint32) (*os.File, uint32, error) {
	if slices.Contains(vsock.HostPorts[:], port) || port == vsock.CIDAny {
		return nil, 0, fmt.Errorf("%w: port %d belongs to Auberge; choose another, or 0 for any", ErrInvalid, port)
	}
	_, m, err := s.up(sub, name)
	if err != nil {
		return nil, 0, err
	}
	if m.Spec.Vsock.Mode != vsock.ModeUser {
		return nil, 0, fmt.Errorf("listen on port %d for VM %q: %w with kernel vsock, where all VMs share the host's ports", port, name, errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	tries := 1
	if port == 0 {
		tries = portTries
	}
	for range tries {
		p := port
		if p == 0 {
			p = firstFreePort + rand.Uint32N(freePorts)
		}
		var f *os.File
		if f, err = m.Listen(ctx, p); err == nil {
			return f, p, nil
		}
		if !strings.Contains(err.Error(), unix.EADDRINUSE.Error()) {
			break
		}
	}
	return nil, 0, fmt.Errorf("VM %q: %w", name, err)
}
