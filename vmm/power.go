package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vsock"
)

// control is the hypervisor's monitor for something that it may not be able to
// do.
func control[T any](s *Supervisor, what string) (T, error) {
	s.mu.Lock()
	monitor := s.monitor
	s.mu.Unlock()
	var none T
	if monitor == nil {
		return none, fmt.Errorf("%s: the hypervisor's monitor does not answer", what)
	}
	can, ok := monitor.(T)
	if !ok {
		return none, fmt.Errorf("%s: %w by this hypervisor", what, errors.ErrUnsupported)
	}
	return can, nil
}

func (s *Supervisor) setPaused(paused bool) error {
	what := "resume the VM"
	if paused {
		what = "pause the VM"
	}
	p, err := control[Pauser](s, what)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	if paused {
		err = p.Pause(ctx)
	} else {
		err = p.Resume(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.mu.Lock()
	s.paused = paused
	s.mu.Unlock()
	return nil
}

func (s *Supervisor) resizeDisk(disk int, size int64) error {
	r, err := control[DiskResizer](s, "resize a disk")
	if err != nil {
		return err
	}
	s.mu.Lock()
	spec := s.spec
	s.mu.Unlock()
	if spec == nil || disk < 0 || disk >= len(spec.Disks) || size <= 0 {
		return fmt.Errorf("resize a disk: there is no disk %d, or %d bytes are no size", disk, size)
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	return r.ResizeDisk(ctx, disk, size)
}

// listenFor makes a listening socket for the guest's streams to a port, which
// whoever asked for it keeps: when that is closed, the port is free again.
func (s *Supervisor) listenFor(port uint32) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spec == nil || s.spec.Vsock.Mode != vsock.ModeUser {
		return nil, fmt.Errorf("listen on port %d: the VM has no vsock in user mode: %w", port, errors.ErrUnsupported)
	}
	name := vsock.EndpointPath(VsockSocket, port)
	if _, own := s.endpoints[port]; own || inUse(name) {
		return nil, fmt.Errorf("listen on port %d: %w", port, unix.EADDRINUSE)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return listenFile(name)
}

// inUse says whether somebody listens at a socket's name, without becoming
// a client: a socket of another type is refused in different ways.
func inUse(name string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Clean(name)})
	return err != unix.ECONNREFUSED && err != unix.ENOENT
}

// Paused says whether the VM's processors stand still.
func (m *Machine) Paused(ctx context.Context) (bool, error) {
	r, err := call(ctx, m.control(), request{Op: opStatus}, nil)
	if err != nil {
		return false, err
	}
	if r.Status == nil {
		return false, errors.New("the VM's supervisor gave no sensible answer")
	}
	return r.Status.Paused, nil
}

// Pause stops the VM's processors.
func (m *Machine) Pause(ctx context.Context) error {
	_, err := call(ctx, m.control(), request{Op: opPause}, nil)
	return err
}

// Resume lets the VM's processors go on.
func (m *Machine) Resume(ctx context.Context) error {
	_, err := call(ctx, m.control(), request{Op: opResume}, nil)
	return err
}

// ResizeDisk changes a disk's size, in bytes; disk is its place in the Spec.
func (m *Machine) ResizeDisk(ctx context.Context, disk int, size int64) error {
	_, err := call(ctx, m.control(), request{Op: opResize, Disk: disk, Size: size}, nil)
	return err
}

// Listen returns a listening Unix socket on which the guest's streams to a port
// of the host arrive. It is the caller's; closing it frees the port. The error
// is EADDRINUSE in words when somebody listens there already.
func (m *Machine) Listen(ctx context.Context, port uint32) (*os.File, error) {
	_, files, err := callForFiles(ctx, m.control(), request{Op: opListen, Port: port}, nil)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		closeAll(files)
		return nil, fmt.Errorf("the VM's supervisor sent %d sockets for one port", len(files))
	}
	return files[0], nil
}
