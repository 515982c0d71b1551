package concierge

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// ConnectVsock opens a stream to a port of a running VM and returns its
// descriptor.
func (s *Service) ConnectVsock(ctx context.Context, sub policy.Subject, name string, port uint32) (*os.File, error) {
	v, err := s.find(sub, name)
	if err != nil {
		return nil, err
	}
	return s.connectTo(ctx, v, port)
}

func (s *Service) connectTo(ctx context.Context, v *vm, port uint32) (*os.File, error) {
	name := v.key.name
	v.mu.Lock()
	m, suspended, lost := v.machine, v.suspended, v.startErr
	v.mu.Unlock()
	switch {
	case m == nil && lost != nil:
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, lost)
	case m == nil:
		return nil, fmt.Errorf("%w: %q is still being started", ErrNotRunning, name)
	case suspended:
		return nil, fmt.Errorf("%w: %q is suspended; resume it first", ErrNotRunning, name)
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	c, err := s.dial(ctx, m, port)
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of VM %q: %w", port, name, err)
	}
	defer c.Close()
	return descriptor(c)
}

// dial opens a stream to a port of a VM's guest.
func (s *Service) dial(ctx context.Context, m *vmm.Machine, port uint32) (*vsock.Conn, error) {
	if m.Spec.Vsock.Mode == vsock.ModeKernel && s.cfg.DialGuest != nil {
		return s.cfg.DialGuest(ctx, vsock.Addr{VM: m.Spec.ID, CID: m.Spec.Vsock.CID, Port: port})
	}
	return m.Dial(ctx, port)
}

// descriptor duplicates a stream's descriptor, which the caller then owns.
func descriptor(c syscall.Conn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	// The receiver expects an ordinary, blocking descriptor.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

func sortVMs(vms []*vm) {
	slices.SortFunc(vms, func(a, b *vm) int {
		return cmp.Or(cmp.Compare(a.owner.Word, b.owner.Word), cmp.Compare(a.key.name, b.key.name))
	})
}
