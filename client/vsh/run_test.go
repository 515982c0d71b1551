package vsh_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/client/vsh"
	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/protos/vshpb"
)

// TestMain keeps the signals that the tests send themselves from ending them,
// should one arrive after Run has stopped listening.
func TestMain(m *testing.M) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGHUP)
	goleak.VerifyTestMain(m)
}

// connect opens a stream to a real vshd that runs in this process.
func connect(t *testing.T) net.Conn {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- vshd.New(vshd.WithLogger(slog.New(slog.DiscardHandler))).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// guest is a stand-in for a vshd that does what a real one never would.
func guest(t *testing.T, f func(conn net.Conn)) net.Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer ends[1].Close()
		f(ends[1])
	}()
	t.Cleanup(func() {
		ends[1].Close()
		<-done
	})
	return ends[0]
}

// ready answers the setup request.
func ready(conn net.Conn) *vshpb.Reader {
	r := vshpb.NewReader(conn)
	r.Read(new(vshpb.SetupConnectionRequest))
	vshpb.NewWriter(conn).Write(&vshpb.SetupConnectionResponse{Status: vshpb.ConnectionStatus_READY})
	return r
}

func hostStatus(st vshpb.ConnectionStatus, text string) *vshpb.HostMessage {
	return &vshpb.HostMessage{Msg: &vshpb.HostMessage_StatusMessage{
		StatusMessage: &vshpb.ConnectionStatusMessage{Status: st, Description: text},
	}}
}

func script(t *testing.T, text string) *vsh.Options {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return &vsh.Options{User: u.Username, Argv: []string{"sh", "-c", text}, Stdout: io.Discard, Stderr: io.Discard}
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script string
		set    func(*vsh.Options)
		out    string
		errs   string
		code   int
	}{
		{name: "exit code", script: "exit 7", code: 7},
		{name: "exit by signal", script: "kill -KILL $$", code: 137},
		{name: "output and errors", script: "echo out; echo err >&2", out: "out\n", errs: "err\n"},
		{name: "no input", script: "cat; echo end", out: "end\n"},
		{name: "input", script: "cat", set: func(o *vsh.Options) { o.Stdin = strings.NewReader("hello") }, out: "hello"},
		{name: "input that fails ends", script: "cat", set: func(o *vsh.Options) {
			o.Stdin = io.MultiReader(strings.NewReader("some"), iotest.ErrReader(syscall.EIO))
		}, out: "some"},
		{name: "environment", script: "echo $A-$B", set: func(o *vsh.Options) { o.Env = map[string]string{"A": "1", "B": "2"} }, out: "1-2\n"},
		{name: "directory", script: "pwd", set: func(o *vsh.Options) { o.Cwd = "/usr" }, out: "/usr\n"},
		{name: "terminal of its own", script: "test -t 0 && test -t 1 && test -t 2 && echo yes", set: func(o *vsh.Options) { o.Pty = true }, out: "yes\r\n"},
		{name: "pipes", script: "test -t 0 || test -t 1 || test -t 2 || echo none", out: "none\n"},
		{name: "no such command", script: "exec no-such-command", code: 127, errs: "not found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := script(t, tc.script)
			var out, errs bytes.Buffer
			o.Stdout, o.Stderr = &out, &errs
			if tc.set != nil {
				tc.set(o)
			}
			code, err := vsh.Run(t.Context(), connect(t), o)
			if err != nil || code != tc.code || out.String() != tc.out || !strings.Contains(errs.String(), tc.errs) {
				t.Errorf("code %d, %v, stdout %q, stderr %q; want %d, %q, %q", code, err, out.String(), errs.String(), tc.code, tc.out, tc.errs)
			}
		})
	}
}

func TestRefusalIsTheGuestsSentence(t *testing.T) {
	for _, tc := range []struct {
		set  func(*vsh.Options)
		want string
	}{
		{func(o *vsh.Options) { o.User = "no-such-user" }, `no user "no-such-user" in this VM`},
		{func(o *vsh.Options) { o.Target = "penguin" }, `no way into container "penguin"`},
		{func(o *vsh.Options) { o.Cwd = "/no/such/dir" }, `no directory "/no/such/dir" in this VM`},
		{func(o *vsh.Options) { o.CwdPID = 1 << 30 }, "no process 1073741824"},
	} {
		o := script(t, "true")
		tc.set(o)
		code, err := vsh.Run(t.Context(), connect(t), o)
		var refused *vsh.RefusedError
		if code != vsh.ExitLost || !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("code %d, %v; want %d and %q", code, err, vsh.ExitLost, tc.want)
		}
	}
}

func TestSetupFailures(t *testing.T) {
	closes := func(net.Conn) {}
	for _, tc := range []struct {
		name string
		conn func(net.Conn)
		set  func(*vsh.Options)
		want string
	}{
		{"the guest closes at once", closes, nil, "gave no answer: the VM closed the connection"},
		{"the guest answers garbage", func(c net.Conn) { c.Write([]byte("SSH-2.0-x\r\n")) }, nil, "too long"},
		{"a command that does not fit", closes, func(o *vsh.Options) {
			o.Argv = []string{strings.Repeat("x", vshpb.MaxMessage)}
		}, "too long for vsh"},
		{"a refusal that would play tricks on a terminal", func(c net.Conn) {
			vshpb.NewWriter(c).Write(&vshpb.SetupConnectionResponse{Status: vshpb.ConnectionStatus_FAILED, Description: "a\x1b[2Jb\n"})
		}, nil, "a?[2Jb?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := script(t, "true")
			if tc.set != nil {
				tc.set(o)
			}
			code, err := vsh.Run(t.Context(), guest(t, tc.conn), o)
			if code != vsh.ExitLost || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("code %d, %v; want %d and %q", code, err, vsh.ExitLost, tc.want)
			}
		})
	}
	t.Run("the caller gives up", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		conn := guest(t, func(c net.Conn) {
			vshpb.NewReader(c).Next()
			cancel(why)
			io.Copy(io.Discard, c)
		})
		if code, err := vsh.Run(ctx, conn, script(t, "true")); code != vsh.ExitLost || err != why {
			t.Errorf("code %d, %v", code, err)
		}
	})
}

func TestLostSessions(t *testing.T) {
	for _, tc := range []struct {
		name string
		act  func(net.Conn)
		want string
	}{
		{"closed", func(net.Conn) {}, "the session was lost: the VM closed the connection"},
		{"closed within a message", func(c net.Conn) { c.Write([]byte{9, 0, 0, 0, 1}) }, "the session was lost"},
		{"an oversized message", func(c net.Conn) { c.Write([]byte{1, 16, 0, 0}) }, "too long"},
		{"garbage", func(c net.Conn) { c.Write([]byte{1, 0, 0, 0, 0xff}) }, "no vsh message"},
		{"failed", func(c net.Conn) {
			vshpb.NewWriter(c).Write(hostStatus(vshpb.ConnectionStatus_FAILED, "vshd is stopping"))
		}, "the VM ended the session: vshd is stopping"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			o := script(t, "true")
			o.Stdout = &out
			conn := guest(t, func(c net.Conn) {
				ready(c)
				vshpb.NewWriter(c).WriteData(vshpb.StdioStream_STDOUT_STREAM, []byte("before"))
				tc.act(c)
			})
			code, err := vsh.Run(t.Context(), conn, o)
			if code != 123 || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("code %d, %v; want 123 and %q", code, err, tc.want)
			}
			if out.String() != "before" {
				t.Errorf("what came before the end is %q", out.String())
			}
		})
	}
}

func TestMessagesOfTheFutureAreIgnored(t *testing.T) {
	conn := guest(t, func(c net.Conn) {
		ready(c)
		c.Write([]byte{0, 0, 0, 0})
		c.Write([]byte{3, 0, 0, 0, 0x7a, 1, 'x'})
		w := vshpb.NewWriter(c)
		w.WriteData(vshpb.StdioStream(9), []byte("x"))
		w.WriteData(vshpb.StdioStream_STDOUT_STREAM, nil)
		w.Write(hostStatus(vshpb.ConnectionStatus_READY, ""))
		w.Write(hostStatus(vshpb.ConnectionStatus_EXITED, ""))
	})
	if code, err := vsh.Run(t.Context(), conn, script(t, "true")); code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

func TestBulkDataBothWays(t *testing.T) {
	data := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		w.Write(data)
		w.Close()
	}()
	sum := sha256.New()
	o := script(t, "exec cat")
	o.Stdin, o.Stdout = r, sum
	if code, err := vsh.Run(t.Context(), connect(t), o); code != 0 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("what came back is not what was sent")
	}
}

// A shell script's loop must find its input where the session left it.
func TestInputIsNotReadAfterTheSession(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := script(t, "exit 0")
	o.Stdin = r
	if code, err := vsh.Run(t.Context(), connect(t), o); code != 0 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	w.WriteString("left")
	w.Close()
	if rest, err := io.ReadAll(r); string(rest) != "left" || err != nil {
		t.Errorf("left of the input: %q, %v", rest, err)
	}
}

// trigger does something when it sees a text in the output.
type trigger struct {
	text string
	act  func()
	seen bytes.Buffer
}

func (w *trigger) Write(p []byte) (int, error) {
	w.seen.Write(p)
	if w.act != nil && strings.Contains(w.seen.String(), w.text) {
		act := w.act
		w.act = nil
		act()
	}
	return len(p), nil
}

func kill(sig syscall.Signal) func() {
	return func() { unix.Kill(os.Getpid(), sig) }
}

func TestSignalsAreForwarded(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		o := script(t, fmt.Sprintf("trap 'echo got; kill $!; exit 40' %d; sh -c 'echo ready; exec sleep 300' & wait", sig))
		out := &trigger{text: "ready", act: kill(sig)}
		o.Stdout = out
		code, err := vsh.Run(t.Context(), connect(t), o)
		if code != 40 || err != nil || out.seen.String() != "ready\ngot\n" {
			t.Errorf("%v: code %d, %v, %q", sig, code, err, out.seen.String())
		}
	}
}

func TestSignalsGetThroughToOurselvesWhenTheGuestIsStuck(t *testing.T) {
	stuck := make(chan struct{})
	conn := guest(t, func(c net.Conn) {
		ready(c)
		vshpb.NewWriter(c).WriteData(vshpb.StdioStream_STDOUT_STREAM, []byte("ready"))
		<-stuck // reading nothing
	})
	defer close(stuck)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	started, over := make(chan struct{}), make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		w.Write(make([]byte, 16<<20)) // more than pipes and sockets hold
		w.Close()
	})
	others.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-started:
				kill(syscall.SIGTERM)()
				runtime.Gosched()
			}
		}
	})
	o := script(t, "")
	o.SetPatience(1)
	o.Stdin, o.Stdout = r, &trigger{text: "ready", act: func() { close(started) }}
	code, err := vsh.Run(t.Context(), conn, o)
	var ended *vsh.SignalError
	if code != 143 || !errors.As(err, &ended) || !strings.Contains(err.Error(), "takes no messages") {
		t.Errorf("code %d, %v", code, err)
	}
	close(over)
	r.Close()
	others.Wait()
}

func TestNobodyReadsTheOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	o := script(t, "yes")
	o.Stdout = w
	if code, err := vsh.Run(t.Context(), connect(t), o); code != 141 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("code %d, %v", code, err)
	}
}

func TestCancelWhileTheOutputIsStuck(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	o := script(t, "yes")
	o.Stdout = writerFunc(func(p []byte) (int, error) {
		cancel()
		return w.Write(bytes.Repeat(p, 1<<20/len(p)+1)) // more than a pipe holds
	})
	if code, err := vsh.Run(ctx, connect(t), o); code != vsh.ExitLost || !errors.Is(err, context.Canceled) {
		t.Errorf("code %d, %v", code, err)
	}
	w.Close()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A terminalPair is a terminal with a person's end and a program's end.
type terminalPair struct {
	t              *testing.T
	person, device *os.File
	before         unix.Termios
}

func openTerminal(t *testing.T) *terminalPair {
	t.Helper()
	person, device, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		person.Close()
		device.Close()
	})
	p := &terminalPair{t: t, person: person, device: device}
	p.before = p.mode()
	return p
}

func (p *terminalPair) mode() unix.Termios {
	p.t.Helper()
	mode, err := unix.IoctlGetTermios(int(p.device.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *mode
}

func (p *terminalPair) isRaw() bool { return p.mode().Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 }

func (p *terminalPair) resize(rows, cols uint16) {
	p.t.Helper()
	if err := pty.Setsize(p.device, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		p.t.Fatal(err)
	}
}

func TestTerminalIsRawDuringTheSessionAndRestoredAfterwards(t *testing.T) {
	for _, tc := range []struct {
		name  string
		conn  func(t *testing.T) net.Conn
		act   func(cancel func())
		code  int
		panic bool
	}{
		{name: "exit", act: func(func()) {}, code: 6},
		{name: "signal", act: func(func()) { kill(syscall.SIGTERM)() }, code: 143},
		{name: "hang-up", act: func(func()) { kill(syscall.SIGHUP)() }, code: 129},
		{name: "cancelled", act: func(cancel func()) { cancel() }, code: vsh.ExitLost},
		{name: "panic", act: func(func()) { panic("oops") }, panic: true},
		{name: "lost", conn: func(t *testing.T) net.Conn {
			return guest(t, func(c net.Conn) {
				ready(c)
				vshpb.NewWriter(c).WriteData(vshpb.StdioStream_STDOUT_STREAM, []byte("ready"))
			})
		}, act: func(func()) {}, code: vsh.ExitLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			term := openTerminal(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := script(t, "echo ready; read x; exit 6")
			o.Pty, o.Stdin = true, term.device
			o.Stdout = &trigger{text: "ready", act: func() {
				if !term.isRaw() {
					t.Error("the terminal is not raw during the session")
				}
				term.person.WriteString("\r")
				tc.act(cancel)
			}}
			conn := connect
			if tc.conn != nil {
				conn = tc.conn
			}
			defer func() {
				if v := recover(); (v != nil) != tc.panic || tc.panic && !strings.Contains(fmt.Sprint(v), "oops") {
					t.Errorf("recovered %v", v)
				}
				if term.mode() != term.before {
					t.Errorf("the terminal is not as it was: %+v, want %+v", term.mode(), term.before)
				}
			}()
			// What comes first of the exit after the key and the signal is not
			// ours to say.
			if code, err := vsh.Run(ctx, conn(t), o); code != tc.code && code != 6 {
				t.Errorf("code %d, %v; want %d", code, err, tc.code)
			}
		})
	}
}

func TestTerminalOfAnOtherwisePlainSessionIsLeftAlone(t *testing.T) {
	term := openTerminal(t)
	o := script(t, "echo ready; exit 0")
	o.Stdin = term.device
	o.Stdout = &trigger{text: "ready", act: func() {
		if term.mode() != term.before {
			t.Error("the terminal's mode was changed")
		}
	}}
	if code, err := vsh.Run(t.Context(), connect(t), o); code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

func TestWindowSizeAndResize(t *testing.T) {
	term := openTerminal(t)
	term.resize(31, 101)
	o := script(t, "trap 'stty size; kill $!; exit 3' WINCH; stty size; sleep 300 & echo ready; wait")
	o.Pty, o.Stdin = true, term.device
	out := &trigger{text: "ready", act: func() {
		term.resize(40, 120)
		kill(syscall.SIGWINCH)()
	}}
	o.Stdout = out
	code, err := vsh.Run(t.Context(), connect(t), o)
	if want := "31 101\r\nready\r\n40 120\r\n"; code != 3 || err != nil || out.seen.String() != want {
		t.Errorf("code %d, %v, %q; want %q", code, err, out.seen.String(), want)
	}
}

func TestContinuedSessionIsRawAgain(t *testing.T) {
	term := openTerminal(t)
	o := script(t, "trap 'echo again; exit 0' WINCH; echo ready; while :; do read x; done")
	o.Pty, o.Stdin = true, term.device
	wasRaw := false
	continued := &trigger{text: "again", act: func() { wasRaw = term.isRaw() }}
	started := &trigger{text: "ready", act: func() {
		// As a shell does when it stops and continues a job.
		if err := unix.IoctlSetTermios(int(term.device.Fd()), unix.TCSETS, &term.before); err != nil {
			t.Error(err)
		}
		term.resize(12, 34)
		kill(syscall.SIGCONT)()
	}}
	o.Stdout = io.MultiWriter(started, continued)
	if code, err := vsh.Run(t.Context(), connect(t), o); code != 0 || err != nil || !wasRaw {
		t.Errorf("code %d, %v, raw again %v", code, err, wasRaw)
	}
	if term.mode() != term.before {
		t.Error("the terminal is not as it was")
	}
}

func TestInteractiveShell(t *testing.T) {
	term := openTerminal(t)
	o := script(t, "")
	o.Argv, o.Env = []string{"sh", "-i"}, map[string]string{"PS1": "prompt> "}
	o.Pty, o.Stdin = true, term.device
	typed := &trigger{text: "prompt> ", act: func() { term.person.WriteString("echo $((6*7))\rexit 5\r") }}
	o.Stdout = typed
	code, err := vsh.Run(t.Context(), connect(t), o)
	if code != 5 || err != nil || !strings.Contains(typed.seen.String(), "42\r\n") {
		t.Errorf("code %d, %v, %q", code, err, typed.seen.String())
	}
}

func TestSplitCommand(t *testing.T) {
	for _, tc := range []struct {
		args string
		env  map[string]string
		argv string
	}{
		{"", nil, ""},
		{"ls -l", nil, "ls -l"},
		{"A=1 B_2= ls C=3", map[string]string{"A": "1", "B_2": ""}, "ls C=3"},
		{"A=b=c", map[string]string{"A": "b=c"}, ""},
		{"2A=1", nil, "2A=1"},
		{"=x", nil, "=x"},
		{"a-b=1 ls", nil, "a-b=1 ls"},
		{"./x=1", nil, "./x=1"},
	} {
		env, argv := vsh.SplitCommand(strings.Fields(tc.args))
		if fmt.Sprint(env) != fmt.Sprint(tc.env) || strings.Join(argv, " ") != tc.argv {
			t.Errorf("%q: %v %v, want %v %v", tc.args, env, argv, tc.env, tc.argv)
		}
	}
}
