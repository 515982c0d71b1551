package vsh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// ExitLost is the exit code when the session ended in any way but with the
// exit of its process.
const ExitLost = 123

const (
	// setupTimeout bounds the wait for the guest's first answer.
	setupTimeout = 30 * time.Second
	// flushTime is how long an output that takes nothing can hold Run up.
	flushTime = time.Second
)

// Options describe a session. All but the files may be left empty.
type Options struct {
	Target string // container name; empty for the VM itself
	User   string // empty for the guest's default
	Cwd    string // working directory; empty for the user's home
	CwdPID int32  // start in the directory of this process of the guest instead

	Env  map[string]string // for the process; the guest forces HOME, SHELL, USER and LOGNAME
	Argv []string          // program and arguments; empty for a login shell

	// Pty runs the process on a terminal of its own. If Stdin is a terminal it
	// is put into raw mode for the session.
	Pty bool

	// Started, if set, is told the number of the process in the guest.
	Started func(pid int32)

	// Stdin may be nil for no input. Reading it is given up when the session
	// ends, at once if it is an *os.File.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	patience time.Duration // see defaultPatience
}

// A RefusedError says that the guest did not start the session.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// A SignalError says that a signal to this process ended the session.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return "ended by signal: " + e.Signal.String() }

// Run runs a session on conn, a stream to a vshd, until its process has
// exited, and returns the process's exit code. It closes conn.
//
// Signals to this process are forwarded to the guest's, except with Pty, where
// they end the session: there the keyboard's go through the terminal.
//
// With an error comes the exit code that says best what happened: ExitLost, 128
// plus the number of the signal that ended the session, or 141, as from
// SIGPIPE, when Stdout or Stderr is a pipe that nobody reads any more.
func Run(ctx context.Context, conn net.Conn, opts *Options) (int, error) {
	defer conn.Close()
	s := &session{
		opts:   opts,
		conn:   conn,
		frames: vshpb.NewReader(conn),
		out:    vshpb.NewWriter(conn),
		ended:  make(chan outcome, 8), // more than there are workers, none of which waits
	}
	if err := s.setup(ctx); err != nil {
		return ExitLost, err
	}
	return s.run(ctx)
}

// An outcome is how a session ended.
type outcome struct {
	code int
	err  error
}

// A panicError carries a panic of a worker to the caller of Run.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("%v\n\n%s", e.value, e.stack) }

type session struct {
	opts   *Options
	conn   net.Conn
	frames *vshpb.Reader
	out    *vshpb.Writer
	ended  chan outcome // the first outcome counts
}

// setup sends the request and waits for the answer.
func (s *session) setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, setupTimeout,
		fmt.Errorf("the VM did not answer within %v", setupTimeout))
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	if err := s.out.Write(s.request()); errors.Is(err, vshpb.ErrTooLong) {
		return fmt.Errorf("the command and its environment are too long for vsh: %w", err)
	}
	// Had the request not been sent, there might be a refusal to read still.
	var resp vshpb.SetupConnectionResponse
	err := s.frames.Read(&resp)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("the VM's shell server gave no answer: %w", plain(err))
	case resp.GetStatus() != vshpb.ConnectionStatus_READY:
		return &RefusedError{printable(resp.GetDescription())}
	}
	if s.opts.Started != nil {
		s.opts.Started(resp.GetPid())
	}
	return nil
}

func (s *session) request() *vshpb.SetupConnectionRequest {
	o := s.opts
	req := &vshpb.SetupConnectionRequest{
		Target: o.Target,
		User:   o.User,
		Env:    o.Env,
		Argv:   o.Argv,
		Nopty:  !o.Pty,
		Cwd:    o.Cwd,
		CwdPid: o.CwdPID,
	}
	if req.Target == "" {
		req.Target = vshpb.Target
	}
	if o.Pty {
		req.WindowRows, req.WindowCols = windowSize(o.Stdout, o.Stdin)
	}
	return req
}

// run runs the workers until one of them knows how the session ended.
func (s *session) run(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sigs := notifySignals() // from before the terminal is raw until after it was
	defer sigs.stop()
	term, err := s.terminal()
	if err != nil {
		return ExitLost, err
	}
	defer term.restore()
	in, err := newInput(s.opts.Stdin)
	if err != nil {
		return ExitLost, err
	}

	var workers sync.WaitGroup
	controls := newControls(s, term)
	s.start(&workers, func() { controls.listen(ctx, sigs.c) })
	s.start(&workers, func() { controls.send(ctx) })
	if in.interruptible() {
		s.start(&workers, func() { s.sendInput(in) })
	} else {
		s.start(nil, func() { s.sendInput(in) })
	}
	received := make(chan struct{})
	s.start(nil, func() {
		defer close(received)
		s.receive()
	})

	var end outcome
	select {
	case end = <-s.ended:
	case <-ctx.Done():
		end = outcome{ExitLost, context.Cause(ctx)}
	}
	cancel()
	if end.err != nil {
		s.hangUp()
	}
	s.conn.Close()
	in.interrupt()
	workers.Wait()
	in.close()
	awaitFor(received, flushTime)
	var p *panicError
	if errors.As(end.err, &p) {
		panic(p)
	}
	return end.code, end.err
}

// hangUp prepares the stream to be closed before its process has exited.
// vhost-device-vsock 0.3.0 does not tell a guest that is in the middle of a write
// that the host's end has closed, and its program would stand there for ever: so
// the guest hears first that nothing more comes, and what it has written already
// is taken.
func (s *session) hangUp() {
	w, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(flushTime)) != nil {
		return
	}
	io.Copy(io.Discard, s.conn)
}

// start runs a worker, whose panic becomes Run's, so that the terminal is
// restored first.
func (s *session) start(wg *sync.WaitGroup, f func()) {
	run := func() {
		defer func() {
			if v := recover(); v != nil {
				s.end(ExitLost, &panicError{v, debug.Stack()})
			}
		}()
		f()
	}
	if wg == nil {
		go run()
		return
	}
	wg.Go(run)
}

func (s *session) end(code int, err error) {
	select {
	case s.ended <- outcome{code, err}:
	default:
	}
}

func awaitFor(done <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// inputBatch is how much input is sent at once, in bytes: towards the guest
// the backend takes streams apart by itself.
const inputBatch = 4 * vshpb.BatchData

// sendInput sends Stdin, whatever there is at once in one write. A failure to
// send is left to receive, which may still have an exit code to read.
func (s *session) sendInput(in *input) {
	buf := make([]byte, inputBatch)
	for {
		n, err := in.read(buf)
		if n > 0 {
			if s.out.WriteData(vshpb.StdioStream_STDIN_STREAM, buf[:n]) != nil {
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, errInterrupted):
			return
		default: // also what cannot be read has ended
			s.out.WriteData(vshpb.StdioStream_STDIN_STREAM, nil)
			return
		}
	}
}

// receive writes the process's output until there is its exit code.
func (s *session) receive() {
	o := newOutput(s.opts.Stdout, s.opts.Stderr)
	for {
		if !s.frames.Ready() {
			if err := o.flush(); err != nil {
				s.endOutput(err)
				return
			}
		}
		payload, err := s.frames.Next()
		if err != nil {
			o.flush()
			s.end(ExitLost, fmt.Errorf("the session was lost: %w", plain(err)))
			return
		}
		if stream, data, ok := vshpb.ParseData(payload); ok {
			if err := o.add(stream, data); err != nil {
				s.endOutput(err)
				return
			}
			continue
		}
		if s.control(payload, o) {
			return
		}
	}
}

// control acts on a message that ParseData does not know, and reports whether
// it ended the session. What this version does not know either is ignored.
func (s *session) control(payload []byte, o *output) bool {
	var m vshpb.HostMessage
	if err := proto.Unmarshal(payload, &m); err != nil {
		o.flush()
		s.end(ExitLost, fmt.Errorf("the VM sent what is no vsh message: %w", err))
		return true
	}
	if d := m.GetDataMessage(); d != nil {
		if err := o.add(d.GetStream(), d.GetData()); err != nil {
			s.endOutput(err)
			return true
		}
		return false
	}
	st := m.GetStatusMessage()
	switch st.GetStatus() {
	case vshpb.ConnectionStatus_EXITED:
		if err := o.flush(); err != nil {
			s.endOutput(err)
			return true
		}
		s.end(int(uint8(st.GetCode())), nil)
		return true
	case vshpb.ConnectionStatus_FAILED:
		o.flush()
		s.end(ExitLost, fmt.Errorf("the VM ended the session: %s", printable(st.GetDescription())))
		return true
	}
	return false
}

// endOutput ends the session because its output cannot be written.
func (s *session) endOutput(err error) {
	code := ExitLost
	if errors.Is(err, syscall.EPIPE) {
		code = 128 + int(syscall.SIGPIPE)
	}
	s.end(code, fmt.Errorf("write the output: %w", err))
}

// plain makes the end of a stream readable for people.
func plain(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return errors.New("the VM closed the connection")
	}
	return err
}

// printable keeps what a guest says from doing things to a terminal.
func printable(text string) string {
	b := []rune(text)
	for i, r := range b {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			b[i] = '?'
		}
	}
	return string(b)
}

// An output collects data of one stream while there is more to come at once.
type output struct {
	writers map[vshpb.StdioStream]io.Writer
	stream  vshpb.StdioStream
	buf     []byte
}

func newOutput(stdout, stderr io.Writer) *output {
	return &output{
		writers: map[vshpb.StdioStream]io.Writer{
			vshpb.StdioStream_STDOUT_STREAM: stdout,
			vshpb.StdioStream_STDERR_STREAM: stderr,
		},
		buf: make([]byte, 0, vshpb.BatchData),
	}
}

// add takes data; the end of a stream, which is none, it leaves to the end of
// the session. Data of a stream that is no output is dropped.
func (o *output) add(stream vshpb.StdioStream, data []byte) error {
	if stream != o.stream || len(o.buf)+len(data) > cap(o.buf) {
		if err := o.flush(); err != nil {
			return err
		}
		o.stream = stream
	}
	o.buf = append(o.buf, data...)
	return nil
}

func (o *output) flush() error {
	data := o.buf
	o.buf = o.buf[:0]
	w := o.writers[o.stream]
	if len(data) == 0 || w == nil {
		return nil
	}
	_, err := w.Write(data)
	return err
}

// file returns the *os.File behind a standard file, or nil.
func file(v any) *os.File {
	f, _ := v.(*os.File)
	return f
}
