package core

import (
	"bytes"
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
	"time"

	"golang.org/x/sys/unix"
)

// DefaultPath is the PATH of what agents start. The directory of the agents
// comes first, so that poweroff reaches our own PID 1.
const DefaultPath = AgentDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// AgentDir is where stage one leaves the agents and their commands.
const AgentDir = "/run/auberge/bin"

// outputLimit is how much of a program's output is kept: its last 64 KiB.
const outputLimit = 64 << 10

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

// Kill sends SIGKILL to the process and its group; nothing happens when the
// process has ended.
func (p *Process) Kill() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if _, ok := p.table.children[p.Pid]; ok {
		unix.Kill(-p.Pid, unix.SIGKILL)
	}
}

// Run runs a program to its end. Any end but exit status 0 is an error that
// carries the last of what the program wrote. When the context ends first, the
// program is killed and awaited.
func (t *Table) Run(ctx context.Context, name string, args ...string) error {
	_, err := t.Output(ctx, name, args...)
	return err
}

// Output is Run that returns the last of what the program wrote.
func (t *Table) Output(ctx context.Context, name string, args ...string) (string, error) {
	path, err := LookPath(name)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", name, err)
	}
	defer r.Close()
	p, err := t.Start(Command{
		Path:   path,
		Args:   append([]string{name}, args...),
		Env:    []string{"PATH=" + DefaultPath, "LC_ALL=C"},
		Output: w,
	})
	w.Close()
	if err != nil {
		return "", err
	}
	out := &tail{limit: outputLimit}
	var reading sync.WaitGroup
	reading.Go(func() { r.WriteTo(out) })

	exit, err := p.Wait(ctx)
	if err != nil {
		p.Kill()
		<-p.Done()
	}
	// Descendants may hold the pipe open for ever; what the program itself
	// wrote is in it by now.
	r.SetReadDeadline(time.Unix(1, 0))
	reading.Wait()
	drain(r, out)
	if err != nil {
		return "", fmt.Errorf("%s was stopped: %w", name, err)
	}
	said := strings.TrimSpace(out.String())
	switch {
	case exit.Success():
		return said, nil
	case said != "":
		return "", fmt.Errorf("%s: %s: %s", name, exit, said)
	}
	return "", fmt.Errorf("%s: %s", name, exit)
}

// drain reads what is in a pipe, without waiting for more.
func drain(r *os.File, out *tail) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	const pipeCapacity = 64 << 10
	raw.Control(func(fd uintptr) {
		buf := make([]byte, pipeCapacity)
		for total := 0; total < pipeCapacity; {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			out.Write(buf[:n])
			total += n
		}
	})
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

// A tail keeps the last bytes written to it.
type tail struct {
	limit int
	buf   bytes.Buffer
	cut   bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.limit; over > 0 {
		t.buf.Next(over)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t.cut {
		return "..." + t.buf.String()
	}
	return t.buf.String()
}
