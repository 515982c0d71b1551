package vsock_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/vsock"
)

var guest = vsock.Addr{VM: "abc", CID: 33, Port: 8888}

func TestDialUser(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		err    string // part of the error; empty when the dial succeeds
		is     error
	}{
		"accepted":               {answer: "OK 1073741824\n"},
		"accepted with CR":       {answer: "OK 5\r\n"},
		"refused":                {answer: "", err: "port 8888", is: vsock.ErrRefused},
		"cut off":                {answer: "OK 10", err: "port 8888", is: vsock.ErrRefused},
		"no port":                {answer: "OK\n", err: `"OK"`},
		"no port but a space":    {answer: "OK \n", err: `"OK "`},
		"a port that is a word":  {answer: "OK abc\n", err: `"OK abc"`},
		"a port too large":       {answer: "OK 4294967296\n", err: "4294967296"},
		"a negative port":        {answer: "OK -1\n", err: `"OK -1"`},
		"small letters":          {answer: "ok 1\n", err: `"ok 1"`},
		"an empty line":          {answer: "\nOK 1\n", err: `""`},
		"garbage":                {answer: "\x00\xff\x1b[31m\n", err: `\x1b[31m`},
		"a line without an end":  {answer: strings.Repeat("x", 1000), err: "no answer line"},
		"a long line with an OK": {answer: "OK " + strings.Repeat("0", vsock.MaxReply) + "1\n", err: "no answer line"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := make(chan string, 1)
			path := fakeBackend(t, func(line string, c net.Conn) {
				defer c.Close()
				lines <- line
				io.WriteString(c, test.answer)
				if test.err == "" {
					io.WriteString(c, "first bytes\nand more")
				}
			})
			c, err := vsock.DialUser(t.Context(), path, guest)
			if line := <-lines; line != "CONNECT 8888\n" {
				t.Errorf("the backend was told %q", line)
			}
			if test.err != "" {
				if c != nil || err == nil || !strings.Contains(err.Error(), test.err) || (test.is != nil && !errors.Is(err, test.is)) {
					t.Fatalf("%v, %v; want an error with %q", c, err, test.err)
				}
				var op *net.OpError
				if !errors.As(err, &op) || op.Addr != net.Addr(guest) {
					t.Errorf("the error does not say who was dialled: %#v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// What came right behind the line is the stream's.
			if b, err := io.ReadAll(c); err != nil || string(b) != "first bytes\nand more" {
				t.Errorf("read %q, %v", b, err)
			}
			if peer, ok := vsock.PeerOf(c); !ok || peer != guest {
				t.Errorf("the peer is %v", peer)
			}
			if c.LocalAddr() != net.Addr(vsock.Addr{CID: vsock.CIDHost}) {
				t.Errorf("this end is %v", c.LocalAddr())
			}
		})
	}
}

func TestDialUserWithoutBackend(t *testing.T) {
	dir := t.TempDir()
	if _, err := vsock.DialUser(t.Context(), filepath.Join(dir, "none"), guest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	path := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := vsock.DialUser(t.Context(), path, guest); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a dead socket: %v", err)
	}
}

// A backend that says nothing, or not enough, is not waited for longer than
// the caller wants.
func TestDialUserGivesUp(t *testing.T) {
	for _, answer := range []string{"", "OK 1"} {
		asked, end := make(chan struct{}, 1), make(chan struct{})
		path := fakeBackend(t, func(_ string, c net.Conn) {
			defer c.Close()
			io.WriteString(c, answer)
			asked <- struct{}{}
			<-end
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-asked
			cancel()
		}()
		if _, err := vsock.DialUser(ctx, path, guest); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled after %q: %v", answer, err)
		}
		end <- struct{}{}

		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		if _, err := vsock.DialUser(ctx, path, guest); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("past the deadline after %q: %v", answer, err)
		}
		cancel()
		close(end)
	}
}

// A deadline of the dial is none of the stream.
func TestDialUserLeavesNoDeadline(t *testing.T) {
	begin := make(chan struct{})
	path := fakeBackend(t, func(_ string, c net.Conn) {
		defer c.Close()
		io.WriteString(c, "OK 1\n")
		<-begin
		io.WriteString(c, "late")
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	c, err := vsock.DialUser(ctx, path, guest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	close(begin)
	if b, err := io.ReadAll(c); err != nil || string(b) != "late" {
		t.Errorf("read %q, %v", b, err)
	}
}

var goodAnswer = regexp.MustCompile(`^OK ([0-9]+)\r*$`)

// FuzzAnswer feeds the answer to CONNECT with what a backend might send: the
// dial must accept exactly the answers that are one, and leave what follows
// the line in the stream.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"OK 1\n", "OK 1\npayload", "OK\n", "", "\n", "OK 4294967296\n", "OK 1\r\n\n", strings.Repeat("x", 40)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		ours, theirs := socketPair(t)
		defer ours.Close()
		if _, err := theirs.Write(data); err != nil {
			t.Fatal(err)
		}
		theirs.(*net.UnixConn).CloseWrite()
		defer theirs.Close()
		err := vsock.RequestPort(t.Context(), ours, 8888)
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		good := false
		if m := goodAnswer.FindSubmatch(line); m != nil && ended && len(line) < vsock.MaxReply {
			port, perr := strconv.ParseUint(string(m[1]), 10, 64)
			good = perr == nil && port <= math.MaxUint32
		}
		if good != (err == nil) {
			t.Fatalf("%q: %v", data, err)
		}
		if !good {
			return
		}
		if b, err := io.ReadAll(ours); err != nil || !bytes.Equal(b, rest) {
			t.Errorf("after %q came %q, %v; want %q", line, b, err, rest)
		}
	})
}
