package vsock_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vsock"
)

// A dialled stream is a net.Conn in every respect.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (ours, theirs net.Conn, stop func(), err error) {
		accepted := make(chan net.Conn, 1)
		path := fakeBackend(t, func(_ string, c net.Conn) {
			io.WriteString(c, "OK 1\n")
			accepted <- c
		})
		if ours, err = vsock.DialUser(t.Context(), path, guest); err != nil {
			return nil, nil, nil, err
		}
		theirs = vsock.NewConn(<-accepted, guest, vsock.Addr{CID: vsock.CIDHost})
		return ours, theirs, func() { ours.Close(); theirs.Close() }, nil
	})
}

// A stream's identity is that of the endpoint on which it arrived.
func TestListenerNamesItsStreams(t *testing.T) {
	base := filepath.Join(t.TempDir(), "vm.vsock")
	path := vsock.EndpointPath(base, 7777)
	if path != base+"_7777" {
		t.Fatalf("the endpoint is at %s", path)
	}
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	peer := vsock.Addr{VM: "abc", CID: 40}
	l := vsock.NewListener(inner, peer, 7777)
	defer l.Close()
	if l.Addr() != net.Addr(vsock.Addr{CID: vsock.CIDHost, Port: 7777}) || l.Addr().String() != "vsock:2:7777" || l.Addr().Network() != "vsock" {
		t.Errorf("it listens on %v", l.Addr())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if p, ok := vsock.PeerOf(got); !ok || p != peer {
		t.Errorf("the peer is %v, want %v", p, peer)
	}
	if got.LocalAddr() != l.Addr() {
		t.Errorf("this end is %v", got.LocalAddr())
	}
	if _, ok := vsock.PeerOf(c); ok {
		t.Error("a stream of somebody else's has a guest's identity")
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}

// Failures are *net.OpError with both ends; a timeout is one, and the end of
// a stream is io.EOF.
func TestConnErrors(t *testing.T) {
	a, b := socketPair(t)
	c := vsock.NewConn(a, vsock.Addr{CID: vsock.CIDHost}, guest)
	buf := make([]byte, 1)
	c.SetReadDeadline(time.Unix(1, 0))
	_, err := c.Read(buf)
	var op *net.OpError
	if !errors.As(err, &op) || !op.Timeout() || op.Op != "read" || op.Net != "vsock" || op.Addr != net.Addr(guest) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past a deadline: %#v", err)
	}
	c.SetReadDeadline(time.Time{})
	b.Close()
	if _, err := c.Read(buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if _, err := c.Write(buf); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to nobody: %v", err)
	}
	c.Close()
	if _, err := c.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := c.Write(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

func TestConnGivesItsDescriptor(t *testing.T) {
	a, b := socketPair(t)
	defer b.Close()
	c := vsock.NewConn(a, vsock.Addr{}, guest)
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	kind := 0
	raw.Control(func(fd uintptr) { kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) })
	if err != nil || kind != unix.SOCK_STREAM {
		t.Errorf("a socket of type %d, %v", kind, err)
	}
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if _, err := vsock.NewConn(p, vsock.Addr{}, guest).SyscallConn(); !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("of a stream without one: %v", err)
	}
}
