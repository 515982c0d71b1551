package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// DefaultPath is the PATH of what agents start. The directory of the agents
// comes first, so that poweroff reaches our own PID 1.
const DefaultPath = AgentDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// AgentDir is where stage one leaves the agents and their commands.
const AgentDir = "/run/auberge/bin"

// ErrTableClosed says that no process is started any more because the machine
// is going down.
var ErrTableClosed = errors.New("the VM is shutting down")

// A Command says what to run. Nothing is inherited but what it names.
type Command struct {
	Path string   // absolute
	Args []string // with argv[0]; Path alone when empty
	Env  []string // as it stands
	// Stdio is opened as the standard input, output and error; empty is
	// /dev/null.
	Stdio string
	// Output, when set, is the standard output and error instead.
	Output *os.File
	// Files become descriptors 3 and up.
	Files []*os.File
}

// An Exit tells how a process ended.
type Exit struct{ status unix.WaitStatus }

// Code returns the exit status, or -1 when a signal ended the process.
func (e Exit) Code() int { return e.status.ExitStatus() }

// Signal returns the signal that ended the process, or -1.
func (e Exit) Signal() unix.Signal { return e.status.Signal() }

// Signaled tells whether a signal ended the process.
func (e Exit) Signaled() bool { return e.status.Signaled() }

// Success tells whether the process exited with status 0.
func (e Exit) Success() bool { return e.status.Exited() && e.Code() == 0 }

func (e Exit) String() string {
	if e.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", int(e.Signal()), unix.SignalName(e.Signal()))
	}
	return fmt.Sprintf("exit status %d", e.Code())
}

// A Process is a child started by a Table, the leader of its own session.
type Process struct {
	Pid   int
	table *Table
	done  chan struct{}
	exit  Exit // set before done is closed
}

// Done is closed when the process has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, or the context's error; the process is
// left alone then.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// A Table owns every child of this process: those that it started and the
// orphans that the kernel hands to a PID 1 or subreaper. One loop waits for
// them all, which is why a program that has a Table must start its children
// through it and never with os/exec, whose children the loop would reap.
type Table struct {
	log  *slog.Logger
	kick chan os.Signal
	stop chan struct{}
	loop sync.WaitGroup

	// mu is held while forking and while reaping, so that no child is reaped
	// before it is known and no signal is sent to a number already reused.
	mu        sync.Mutex
	children  map[int]*Process
	closed    bool
	childless []chan struct{}
}

// NewTable takes over the reaping of this process's children. There may be one
// Table in a process.
func NewTable(log *slog.Logger) *Table {
	t := &Table{
		log:      log,
		kick:     make(chan os.Signal, 1),
		stop:     make(chan struct{}),
		children: make(map[int]*Process),
	}
	signal.Notify(t.kick, unix.SIGCHLD)
	t.loop.Go(t.reapLoop)
	return t
}

// Close ends the reaping. Processes still running stay.
func (t *Table) Close() {
	signal.Stop(t.kick)
	close(t.stop)
	t.loop.Wait()
}

func (t *Table) reapLoop() {
	for {
		select {
		case <-t.kick:
			t.reap()
		case <-t.stop:
			return
		}
	}
}

// reap collects everything that has ended by now. SIGCHLDs coalesce, so one
// stands for any number of children.
func (t *Table) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			for _, c := range t.childless {
				close(c)
			}
			t.childless = nil
			return
		case err != nil || pid == 0:
			return
		}
		if p, ok := t.children[pid]; ok {
			delete(t.children, pid)
			p.exit = Exit{status}
			close(p.done)
		}
	}
}

// Start runs a command. Its error says why the program did not start.
func (t *Table) Start(c Command) (*Process, error) {
	stdio, err := os.OpenFile(cmp.Or(c.Stdio, os.DevNull), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	defer stdio.Close()
	output := cmp.Or(c.Output, stdio)
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   c.Env,
		Files: []uintptr{stdio.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	for _, f := range c.Files {
		attr.Files = append(attr.Files, f.Fd())
	}
	args := c.Args
	if len(args) == 0 {
		args = []string{c.Path}
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrTableClosed
	}
	pid, err := syscall.ForkExec(c.Path, args, attr)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	p := &Process{Pid: pid, table: t, done: make(chan struct{})}
	t.children[pid] = p
	return p, nil
}

// Signal sends a signal to the process alone; nothing happens when it has
// ended.
func (p *Process) Signal(sig unix.Signal) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if _, ok := p.table.children[p.Pid]; ok {
		unix.Kill(p.Pid, sig)
	}
}

// Kill sends SIGKILL to the process and its group; nothing happens when the
// process has ended.
func (p *Process) Kill() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if _, ok := p.table.children[p.Pid]; ok {
		unix.Kill(-p.Pid, unix.SIGKILL)
	}
}

// LookPath finds a program: an absolute path as it is, or a bare name in
// DefaultPath.
func LookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		if _, err := exec.LookPath(name); err != nil {
			return "", fmt.Errorf("cannot run %s: %w", name, errors.Unwrap(err))
		}
		return name, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("cannot run %q: want an absolute path or a bare name: %w", name, unix.EINVAL)
	}
	for _, dir := range filepath.SplitList(DefaultPath) {
		path := filepath.Join(dir, name)
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("cannot run %s: not in %s: %w", name, DefaultPath, unix.ENOENT)
}

// refuse lets no process start from now on.
func (t *Table) refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// waitChildless waits until this process has no child left.
func (t *Table) waitChildless(ctx context.Context) error {
	done := make(chan struct{})
	t.mu.Lock()
	t.childless = append(t.childless, done)
	t.mu.Unlock()
	t.reap()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
