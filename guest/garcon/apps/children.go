package apps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children are the programs that were started, until they end. Nobody else's
// are waited for.
type children struct {
	log  *slog.Logger
	kick chan os.Signal

	mu   sync.Mutex
	pids map[int]string // with what was started
}

func newChildren(log *slog.Logger) *children {
	return &children{log: log, kick: make(chan os.Signal, 1), pids: map[int]string{}}
}

// start runs a program in a session of its own, with nothing to read and
// nowhere to write to. An error says why it does not run.
func (c *children) start(name, program string, argv, env []string, dir string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	defer null.Close()
	pid, err := syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", program, explain(err))
	}
	c.mu.Lock()
	c.pids[pid] = name
	c.mu.Unlock()
	// It may have ended before it was known.
	select {
	case c.kick <- unix.SIGCHLD:
	default:
	}
	c.log.Info("an application was started", "id", name, "pid", pid)
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.E2BIG):
		return errors.New("the list of files is too long")
	case errors.Is(err, unix.ENOEXEC):
		return errors.New("it is no program for this machine")
	}
	return err
}

// run waits for those that end, until the context does. Those that are left
// then belong to the session.
func (c *children) run(ctx context.Context) {
	signal.Notify(c.kick, unix.SIGCHLD)
	defer signal.Stop(c.kick)
	for {
		c.reap()
		select {
		case <-c.kick:
		case <-ctx.Done():
			return
		}
	}
}

func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid, name := range c.pids {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		switch {
		case got == pid:
			c.log.Info("an application ended", "id", name, "pid", pid, "code", status.ExitStatus())
			delete(c.pids, pid)
		case err != nil && err != unix.EINTR:
			delete(c.pids, pid)
		}
	}
}

func (c *children) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pids)
}
