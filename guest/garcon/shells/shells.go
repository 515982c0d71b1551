// Package shells starts vshd for the host: each one dials the host, serves one
// session and ends. They outlive the agent, as a person's shell should when the
// agent is updated; what it owns of them is that they are waited for.
package shells

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// VshdPath is vshd's place in a container.
const VshdPath = "/opt/google/cros-containers/bin/vshd"

// most bounds the shells at a time.
const most = 128

// A Launcher starts them.
type Launcher struct {
	path string
	dir  string
	log  *slog.Logger
	wg   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	running map[*os.File]struct{} // pidfds
}

// New returns a launcher of the vshd at a path, which starts in dir.
func New(path, dir string, log *slog.Logger) *Launcher {
	return &Launcher{path: path, dir: dir, log: log, running: map[*os.File]struct{}{}}
}

// Launch has a vshd dial a vsock port of the host. Whether it gets there the
// host sees by itself.
func (l *Launcher) Launch(port uint32, env []string) error {
	if port == 0 || port == 1<<32-1 {
		return fmt.Errorf("%d is no vsock port for a shell to dial", port)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errors.New("the container's agent is stopping")
	case len(l.running) >= most:
		return fmt.Errorf("this container runs %d shells for the host already, the most it allows", most)
	}
	proc, pidfd, err := l.start(port, env)
	if err != nil {
		return err
	}
	l.running[pidfd] = struct{}{}
	l.wg.Go(func() { l.await(proc, pidfd) })
	return nil
}

func (l *Launcher) start(port uint32, env []string) (*os.Process, *os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	fd := -1
	proc, err := os.StartProcess(l.path, []string{"vshd", "--inherit_env", "--forward_to_host_port=" + strconv.FormatUint(uint64(port), 10)},
		&os.ProcAttr{
			Dir: l.dir, Env: env, Files: []*os.File{null, null, os.Stderr},
			Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &fd},
		})
	if err != nil {
		return nil, nil, fmt.Errorf("start a shell server: %w", err)
	}
	if fd < 0 || unix.SetNonblock(fd, true) != nil {
		proc.Kill()
		proc.Wait()
		return nil, nil, errors.New("start a shell server: this kernel has no pidfd")
	}
	return proc, os.NewFile(uintptr(fd), "pidfd"), nil
}

// await reaps a vshd, or leaves it when the launcher is closed.
func (l *Launcher) await(proc *os.Process, pidfd *os.File) {
	if ended(pidfd) {
		state, err := proc.Wait()
		if err != nil {
			l.log.Warn("a shell server cannot be waited for", "pid", proc.Pid, "err", err)
		} else {
			l.log.Info("a shell server ended", "pid", proc.Pid, "how", state.String())
		}
	} else {
		proc.Release()
	}
	l.mu.Lock()
	delete(l.running, pidfd)
	l.mu.Unlock()
	pidfd.Close()
}

func ended(pidfd *os.File) bool {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	}) == nil
}

// Running counts the shells.
func (l *Launcher) Running() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.running)
}

// Close leaves the shells alone and takes no more.
func (l *Launcher) Close() {
	l.mu.Lock()
	l.closed = true
	for f := range l.running {
		f.SetReadDeadline(time.Unix(1, 0))
	}
	l.mu.Unlock()
	l.wg.Wait()
}
