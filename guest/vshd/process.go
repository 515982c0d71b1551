package vshd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// A process is the main process of a session and our ends of its files. It
// leads a session and process group of its own, both named by its pid, which
// stays reserved until reap.
type process struct {
	user   string
	pid    int
	pidfd  *os.File
	input  *os.File // where its input goes: a pipe, or the terminal
	output []source // where its output comes from
	master *os.File // the terminal, nil without one
	slave  *os.File // its other end, held so that reading master ends only after exit

	mu   sync.Mutex // guards proc against signals to a pid that is no longer ours
	proc *os.Process
	over bool
}

// A source is a file that output comes from.
type source struct {
	stream vshpb.StdioStream
	file   *os.File
}

// launch starts what a request asks for.
func (s *Server) launch(req *vshpb.SetupConnectionRequest) (*process, error) {
	c, err := s.resolve(req)
	if err != nil {
		return nil, err
	}
	p := &process{user: c.user.name}
	files, err := p.open(c)
	if err != nil {
		p.close()
		return nil, err
	}
	err = p.start(c, files)
	for _, f := range files {
		if f != p.slave {
			f.Close()
		}
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// open makes the process's standard files and returns its ends of them.
func (p *process) open(c *command) ([]*os.File, error) {
	if c.pty {
		if err := p.openTerminal(c); err != nil {
			return nil, fmt.Errorf("open a terminal: %w", err)
		}
		return []*os.File{p.slave, p.slave, p.slave}, nil
	}
	return p.openPipes()
}

func (p *process) openTerminal(c *command) error {
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	p.slave = slave
	// pty.Open leaves master blocking, which nothing could interrupt.
	p.master, err = nonblocking(master)
	if err != nil {
		return err
	}
	p.input = p.master
	p.output = []source{{vshpb.StdioStream_STDOUT_STREAM, p.master}}
	p.resize(c.rows, c.cols)
	if err := slave.Chown(int(c.user.uid), -1); err != nil {
		return err
	}
	return slave.Chmod(0o620)
}

// nonblocking exchanges a file for one on which deadlines work.
func nonblocking(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (p *process) openPipes() (theirs []*os.File, err error) {
	stdin, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	enlarge(input)
	p.input = input
	theirs = append(theirs, stdin)
	for _, stream := range []vshpb.StdioStream{vshpb.StdioStream_STDOUT_STREAM, vshpb.StdioStream_STDERR_STREAM} {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range theirs {
				f.Close()
			}
			return nil, err
		}
		if stream == vshpb.StdioStream_STDOUT_STREAM {
			enlarge(r)
		}
		p.output = append(p.output, source{stream, r})
		theirs = append(theirs, w)
	}
	return theirs, nil
}

// enlarge has a pipe hold more, if the system lets us.
func enlarge(pipe *os.File) {
	control(pipe, func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
		return err
	})
}

func (p *process) start(c *command, files []*os.File) error {
	fd := -1
	attr := &os.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: c.pty, PidFD: &fd},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: c.user.uid, Gid: c.user.gid, Groups: c.user.groups}
	}
	proc, err := os.StartProcess(c.path, c.argv, attr)
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as execvp(3) has it
		argv := append([]string{"sh", c.path}, c.argv[1:]...)
		proc, err = os.StartProcess("/bin/sh", argv, attr)
	}
	switch {
	case errors.Is(err, syscall.ENOENT):
		return &execError{127, fmt.Sprintf("%s: cannot be run: no such file, or no such interpreter", c.path)}
	case err != nil:
		return &execError{126, fmt.Sprintf("%s: cannot be run by user %s in %s: %v", c.path, c.user.name, c.dir, cause(err))}
	}
	p.proc, p.pid = proc, proc.Pid
	if fd < 0 {
		p.kill()
		return errors.New("this kernel has no pidfd, which vshd needs")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		p.kill()
		return err
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	return nil
}

// kill ends a process that nobody has heard of yet.
func (p *process) kill() {
	p.proc.Kill()
	p.proc.Wait()
}

// await waits until the process has exited, without reaping it, or until
// pidfd's read deadline.
func (p *process) await() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
}

// reap returns the exit code, 128 plus the number for a signal. The process
// must have exited.
func (p *process) reap() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	state, err := p.proc.Wait()
	if err != nil {
		return 0, fmt.Errorf("wait for the process: %w", err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}

// signal goes to the foreground of the terminal, or to the process group.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	group := p.pid
	if p.master != nil {
		control(p.master, func(fd int) error {
			g, err := unix.IoctlGetUint32(fd, unix.TIOCGPGRP)
			if err == nil && int32(g) > 1 && p.owns(int(g)) {
				group = int(g)
			}
			return err
		})
	}
	unix.Kill(-group, sig)
}

// owns reports whether a process group may be the session's. The terminal goes
// on naming a group that is gone, whose number may be somebody else's by now.
func (p *process) owns(group int) bool {
	session, err := unix.Getsid(group)
	return err != nil || session == p.pid // without its leader, the number is not reused
}

// resize sets the size of the terminal, if there is one and the size is one
// that a terminal can have.
func (p *process) resize(rows, cols int32) {
	const most = 1<<16 - 1
	if p.master == nil || rows < 1 || cols < 1 || rows > most || cols > most {
		return
	}
	control(p.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
	})
}

// endInput tells the process that there is no more input: a pipe is closed, a
// terminal gets its end-of-file character. Within a line that character only
// delivers what there is of the line, so there it is needed twice.
func (p *process) endInput(last byte) error {
	if p.master == nil {
		return p.input.Close()
	}
	eof, lines := byte(4), false
	control(p.master, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			eof, lines = t.Cc[unix.VEOF], t.Lflag&unix.ICANON != 0
		}
		return err
	})
	end := []byte{eof}
	if lines && last != 0 && last != '\n' && last != '\r' {
		end = []byte{eof, eof}
	}
	_, err := p.master.Write(end)
	return err
}

// control runs f with the descriptor of a file, which stays non-blocking.
func control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var res error
	if err := raw.Control(func(fd uintptr) { res = fn(int(fd)) }); err != nil {
		return err
	}
	return res
}

// interrupt ends what waits for the process's files.
func (p *process) interrupt() {
	p.input.SetWriteDeadline(longAgo)
	for _, src := range p.output {
		src.file.SetReadDeadline(longAgo)
	}
}

// hangUp ends the session's processes: SIGHUP, and SIGKILL for what is left
// after the grace. The process must not have been reaped.
func (p *process) hangUp(grace time.Duration) error {
	if p.master != nil {
		p.closeFiles() // the kernel sends SIGHUP to the foreground
	} else {
		p.signal(syscall.SIGHUP)
		p.signal(syscall.SIGCONT)
		p.closeFiles()
	}
	return endSession(p.pid, grace)
}

// closeFiles closes our ends of the process's files.
func (p *process) closeFiles() {
	for _, f := range []*os.File{p.slave, p.master, p.input} {
		if f != nil {
			f.Close()
		}
	}
	for _, src := range p.output {
		src.file.Close()
	}
}

func (p *process) close() {
	p.closeFiles()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}
