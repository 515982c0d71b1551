package vshd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/protos/vshpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, args ...vshd.Option) string {
	t.Helper()
	l := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	srv := quiet(args...)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// listen makes a Unix socket. The names that t.TempDir makes of long test names
// are too long for one.
func listen(t *testing.T) net.Listener {
	t.Helper()
	dir, err := os.MkdirTemp("", "vshd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// quiet makes a server that does not log.
func quiet(args ...vshd.Option) *vshd.Server {
	return vshd.New(append([]vshd.Option{vshd.WithLogger(slog.New(slog.DiscardHandler))}, args...)...)
}

// self is the user that the tests run as, whom every server may serve.
func self(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to run a session as another user")
	}
}

// A client is one session seen from the host.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *vshpb.Reader
	w    *vshpb.Writer
	resp vshpb.SetupConnectionResponse
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn, r: vshpb.NewReader(conn), w: vshpb.NewWriter(conn)}
}

// open sends a request, filled up with the target and the user, and takes the
// answer.
func open(t *testing.T, addr string, req *vshpb.SetupConnectionRequest) *client {
	t.Helper()
	if req.Target == "" {
		req.Target = vshpb.Target
	}
	if req.User == "" {
		req.User = self(t)
	}
	return openAs(t, addr, req)
}

func openAs(t *testing.T, addr string, req *vshpb.SetupConnectionRequest) *client {
	t.Helper()
	c := dial(t, addr)
	if err := c.w.Write(req); err != nil {
		t.Fatal(err)
	}
	if err := c.r.Read(&c.resp); err != nil {
		t.Fatal(err)
	}
	return c
}

// plain is a request for a shell script on pipes, terminal one on a terminal.
func plain(script string) *vshpb.SetupConnectionRequest {
	return &vshpb.SetupConnectionRequest{Argv: []string{"sh", "-c", script}, Nopty: true}
}

func terminal(script string) *vshpb.SetupConnectionRequest {
	return &vshpb.SetupConnectionRequest{Argv: []string{"sh", "-c", script}, WindowRows: 33, WindowCols: 99}
}

func (c *client) ready() *client {
	c.t.Helper()
	if c.resp.GetStatus() != vshpb.ConnectionStatus_READY {
		c.t.Fatalf("setup: %v %q, want READY", c.resp.GetStatus(), c.resp.GetDescription())
	}
	return c
}

// refused returns the text of a FAILED setup.
func (c *client) refused() string {
	c.t.Helper()
	if c.resp.GetStatus() != vshpb.ConnectionStatus_FAILED {
		c.t.Fatalf("setup: %v, want FAILED", c.resp.GetStatus())
	}
	return c.resp.GetDescription()
}

func (c *client) send(data string) *client {
	c.t.Helper()
	if err := c.w.WriteData(vshpb.StdioStream_STDIN_STREAM, []byte(data)); err != nil {
		c.t.Fatal(err)
	}
	return c
}

func (c *client) eof() *client { return c.send("") }

func (c *client) signal(sig vshpb.Signal) *client {
	c.t.Helper()
	if err := c.w.Write(&vshpb.GuestMessage{Msg: &vshpb.GuestMessage_Signal{Signal: sig}}); err != nil {
		c.t.Fatal(err)
	}
	return c
}

func (c *client) resize(rows, cols int32) *client {
	c.t.Helper()
	m := &vshpb.WindowResizeMessage{Rows: rows, Cols: cols}
	if err := c.w.Write(&vshpb.GuestMessage{Msg: &vshpb.GuestMessage_ResizeMessage{ResizeMessage: m}}); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// next returns the next message.
func (c *client) next() (*vshpb.HostMessage, error) {
	payload, err := c.r.Next()
	if err != nil {
		return nil, err
	}
	m := new(vshpb.HostMessage)
	return m, proto.Unmarshal(payload, m)
}

// expect reads stdout until it holds text, and returns all that was read.
func (c *client) expect(text string) string {
	c.t.Helper()
	var got strings.Builder
	for !strings.Contains(got.String(), text) {
		m, err := c.next()
		if err != nil {
			c.t.Fatalf("waiting for %q: %v after %q", text, err, got.String())
		}
		d := m.GetDataMessage()
		if d == nil {
			c.t.Fatalf("waiting for %q: %v after %q", text, m, got.String())
		}
		got.Write(d.GetData())
	}
	return got.String()
}

// A result is what a session gave.
type result struct {
	stdout, stderr string
	code           int
}

// wait reads the session to its end.
func (c *client) wait() result {
	c.t.Helper()
	res, st, err := c.rest()
	if err != nil || st.GetStatus() != vshpb.ConnectionStatus_EXITED {
		c.t.Fatalf("session ended with %v, %v after %q %q; want EXITED", st, err, res.stdout, res.stderr)
	}
	return res
}

// failed reads the session to its end, which must be a FAILED status.
func (c *client) failed() string {
	c.t.Helper()
	res, st, err := c.rest()
	if err != nil || st.GetStatus() != vshpb.ConnectionStatus_FAILED {
		c.t.Fatalf("session ended with %v, %v after %q %q; want FAILED", st, err, res.stdout, res.stderr)
	}
	return st.GetDescription()
}

func (c *client) rest() (result, *vshpb.ConnectionStatusMessage, error) {
	var stdout, stderr bytes.Buffer
	for {
		m, err := c.next()
		if err != nil {
			return result{stdout.String(), stderr.String(), -1}, nil, err
		}
		if st := m.GetStatusMessage(); st != nil {
			c.conn.Close()
			return result{stdout.String(), stderr.String(), int(st.GetCode())}, st, nil
		}
		switch d := m.GetDataMessage(); d.GetStream() {
		case vshpb.StdioStream_STDOUT_STREAM:
			stdout.Write(d.GetData())
		case vshpb.StdioStream_STDERR_STREAM:
			stderr.Write(d.GetData())
		default:
			return result{}, nil, errors.New("data of " + d.GetStream().String())
		}
	}
}

// run is a whole session without input.
func run(t *testing.T, addr string, req *vshpb.SetupConnectionRequest) result {
	t.Helper()
	return open(t, addr, req).ready().wait()
}

// A watch tells when a process is gone.
type watch struct {
	t  *testing.T
	fd int
}

func watchPid(t *testing.T, pid int) watch {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("pidfd of %d: %v", pid, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return watch{t, fd}
}

func (w watch) gone() {
	w.t.Helper()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, -1)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			w.t.Fatal(err)
		}
	}
}

func (w watch) alive() bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, 0)
	return n == 0
}

func (w watch) kill() { unix.PidfdSendSignal(w.fd, unix.SIGKILL, nil, 0) }

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// closed waits for the server to close the stream.
func (c *client) closed() {
	c.t.Helper()
	if _, err := c.r.Next(); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		c.t.Fatalf("the stream gives %v, want its end", err)
	}
}

// etc makes a directory with passwd and group files.
func etc(t *testing.T, passwd, group string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
