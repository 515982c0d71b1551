package vmm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	backendDied  = "the vsock backend ended, and the VM with it"
	backendReady = 10 * time.Second
)

// startBackend starts the vhost-user vsock device and waits until its socket
// listens, since the hypervisor connects to it exactly once.
func (s *Supervisor) startBackend(spec *Spec) error {
	// Absolute, because /proc/net/unix shows the name that was bound.
	path := filepath.Join(s.cfg.Dir, BackendSocket)
	created, err := watchDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer created.Close()

	errs := NewRing(8 << 10)
	cmd := exec.Command(s.cfg.Backend, "--guest-cid", fmt.Sprint(spec.Vsock.CID),
		"--socket", path, "--uds-path", VsockSocket)
	cmd.Stderr = errs
	if err := s.startChild(cmd); err != nil {
		return fmt.Errorf("start the vsock backend: %w (is the package vhost-device-vsock installed?)", err)
	}
	b := &child{cmd: cmd, done: make(chan struct{})}
	s.mu.Lock()
	s.backend = b
	s.mu.Unlock()
	go func() {
		b.err = cmd.Wait()
		// Harmless when the VM is ending anyway.
		s.stop(backendDied)
		close(b.done)
	}()
	ready := make(chan error, 1)
	go func() { ready <- waitListening(created, path, b.done, s.ready) }()
	select {
	case err := <-ready:
		return err
	case <-b.done:
		return fmt.Errorf("the vsock backend ended at once (%v): %s", b.err, LastLines(errs.Tail(), 3))
	}
}

// A child is a started command and its end.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set when done is closed
}

// endBackend kills the backend, if there is one, and waits for its end.
func (s *Supervisor) endBackend() {
	s.mu.Lock()
	b := s.backend
	s.mu.Unlock()
	if b == nil {
		return
	}
	b.cmd.Process.Kill()
	<-b.done
}

// watchDir watches a directory for new entries.
func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// waitListening waits until a Unix socket at path listens. bind creates the
// name a moment before listen takes effect; the last step is therefore looked
// up in the kernel's table, and connecting to find out is out of the question
// because the backend serves one connection only.
func waitListening(created *os.File, path string, ended <-chan struct{}, within time.Duration) error {
	deadline := time.Now().Add(within)
	created.SetReadDeadline(deadline)
	buf := make([]byte, 4096)
	for {
		if _, err := os.Lstat(path); err == nil {
			break
		}
		if _, err := created.Read(buf); err != nil {
			return fmt.Errorf("the vsock backend did not create %s within %v: %w", path, within, err)
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !listening(path) {
		select {
		case now := <-tick.C:
			if now.After(deadline) {
				return errors.New("the vsock backend does not listen")
			}
		case <-ended:
			return errors.New(backendDied)
		}
	}
	return nil
}

// listening looks for a Unix socket with the accept flag in /proc/net/unix.
func listening(path string) bool {
	b, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		return false
	}
	const acceptFlag = "00010000" // __SO_ACCEPTCON
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) >= 8 && f[3] == acceptFlag && strings.HasSuffix(strings.TrimSuffix(l, "\n"), " "+path) {
			return true
		}
	}
	return false
}
