package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

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

// setPaused makes the VM stand still or go on. Whoever asks does so one at a
// time.
func (s *Supervisor) setPaused(paused bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	s.mu.Lock()
	spec, hyper := s.spec, s.hyper
	s.mu.Unlock()
	var err error
	switch {
	case spec == nil:
		err = errors.New("there is no VM")
	case spec.Vsock.Mode == vsock.ModeUser:
		// A hypervisor that pauses takes the rings away from its backends, and
		// vhost-device-vsock does not survive that anything happens on one of
		// its sockets meanwhile. So the whole hypervisor stands still.
		err = freeze(ctx, hyper.Process, paused)
	default:
		err = s.pauseGuest(ctx, paused)
	}
	if err != nil {
		return fmt.Errorf("%s the VM: %w", pauseWord(paused), err)
	}
	s.mu.Lock()
	s.paused = paused
	s.mu.Unlock()
	return nil
}

func pauseWord(paused bool) string {
	if paused {
		return "pause"
	}
	return "resume"
}

func (s *Supervisor) pauseGuest(ctx context.Context, paused bool) error {
	p, err := control[Pauser](s, "by its monitor")
	switch {
	case err != nil:
		return err
	case paused:
		return p.Pause(ctx)
	}
	return p.Resume(ctx)
}

// freeze stops a process with all its threads and waits until it stands, or
// lets it go on.
func freeze(ctx context.Context, p *os.Process, stop bool) error {
	if !stop {
		return p.Signal(unix.SIGCONT)
	}
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
		if err != nil {
			return err
		}
		// The name before it is in parentheses and may contain anything.
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && len(b) > i+2 && b[i+2] == 'T' {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.Signal(unix.SIGCONT)
			return errors.New("the hypervisor does not stand still")
		}
	}
}

// thaw lets a hypervisor that stands still go on, so that it can end.
func (s *Supervisor) thaw() {
	s.mu.Lock()
	hyper, paused := s.hyper, s.paused
	s.paused = false
	s.mu.Unlock()
	if paused {
		hyper.Process.Signal(unix.SIGCONT)
	}
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
	delete(s.extra, port)
	if len(s.extra) >= maxExtra {
		s.forgetUnused()
	}
	if len(s.extra) >= maxExtra {
		return nil, fmt.Errorf("listen on port %d: there are %d listeners of this VM already; close one", port, len(s.extra))
	}
	f, err := listenFile(name)
	if err == nil {
		s.extra[port] = true
	}
	return f, err
}

// maxExtra is how many names of listeners there can be that somebody asked for
// while the VM runs. Those of listeners that were closed are taken away when
// others need the room.
const maxExtra = 256

// forgetUnused removes the names at which nobody listens any more; under mu.
func (s *Supervisor) forgetUnused() {
	for port := range s.extra {
		name := vsock.EndpointPath(VsockSocket, port)
		if inUse(name) {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log().Warn("remove what a listener has left", "port", port, "err", err)
			continue
		}
		delete(s.extra, port)
	}
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

// FoundPaused says whether the VM's processors stood still when it was
// attached.
func (m *Machine) FoundPaused() bool { return m.paused }

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
