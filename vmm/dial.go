package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/auberge-vm/auberge/vsock"
)

// vhost-device-vsock 0.3.0 panics when it comes to answer a CONNECT and the
// one who asked has hung up, and the guest has no vsock ever after. Whoever
// dials may be killed, or give up while the guest is slow; the supervisor
// lives as long as the backend. So it is the supervisor that dials, waits for
// the answer however long that takes, and hands the stream on.

// maxDials bounds the streams of one VM that wait for the guest's answer.
const maxDials = 1024

// dialGuest opens a stream to a port of the guest. Nothing but the end of the
// VM makes it give up.
func (s *Supervisor) dialGuest(port uint32) (*os.File, error) {
	s.mu.Lock()
	spec, full := s.spec, s.dials >= maxDials
	if spec != nil && !full {
		s.dials++
	}
	s.mu.Unlock()
	switch {
	case spec == nil:
		return nil, errors.New("there is no VM")
	case full:
		return nil, fmt.Errorf("%d streams already wait for the guest's answer: it is too slow, or hangs", maxDials)
	}
	defer func() {
		s.mu.Lock()
		s.dials--
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.ended:
			cancel()
		case <-over:
		}
	}()
	defer func() {
		close(over)
		<-watched
	}()
	c, err := vsock.DialUser(ctx, VsockSocket, vsock.Addr{VM: spec.ID, CID: spec.Vsock.CID, Port: port})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Conn.(*net.UnixConn).File()
}

// Dial opens a stream to a port of the guest.
func (m *Machine) Dial(ctx context.Context, port uint32) (*vsock.Conn, error) {
	if m.Spec.Vsock.Mode == vsock.ModeKernel {
		return vsock.DialKernel(ctx, m.guest(port))
	}
	c, err := m.dialUser(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Source: vsock.Addr{CID: vsock.CIDHost}, Addr: m.guest(port), Err: err}
	}
	return vsock.NewConn(c, vsock.Addr{CID: vsock.CIDHost}, m.guest(port)), nil
}

func (m *Machine) dialUser(ctx context.Context, port uint32) (net.Conn, error) {
	r, files, err := callForFiles(ctx, m.control(), request{Op: opDial, Port: port}, nil)
	defer closeAll(files)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && strings.HasPrefix(err.Error(), unknownRequest):
		// A VM that was started by an older version.
		return vsock.DialUser(ctx, filepath.Join(m.sockets, VsockSocket), m.guest(port))
	case err != nil:
		return nil, err
	case r.Refused:
		return nil, fmt.Errorf("%w on port %d", vsock.ErrRefused, port)
	case len(files) != 1:
		return nil, fmt.Errorf("the VM's supervisor sent %d sockets for one stream", len(files))
	}
	return net.FileConn(files[0])
}
