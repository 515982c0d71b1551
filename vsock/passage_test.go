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

var tremplinOf = vsock.Addr{VM: "abc", CID: 33, Port: 1234}

// unixListener stands for what accepts a guest's streams.
func unixListener(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "port")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return vsock.NewListener(l, tremplinOf, 7778), path
}

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receiver takes the end of a passage as another process does.
func receiver(t *testing.T, p *vsock.Passage) net.Listener {
	t.Helper()
	f, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := vsock.ListenerFile(f, tremplinOf, 7778, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// acceptAndAnswer accepts a stream and says something over it.
func acceptAndAnswer(t *testing.T, l net.Listener, dialled net.Conn) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	dialled.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 5)
	if _, err := io.ReadFull(dialled, b); err != nil || string(b) != "hello" {
		t.Fatalf("read %q, %v", b, err)
	}
	return c
}

func TestPassage(t *testing.T) {
	inner, path := unixListener(t)
	p := vsock.NewPassage(inner)
	defer p.Close()
	// What comes before somebody takes it waits.
	early := dialUnix(t, path)
	l := receiver(t, p)
	c := acceptAndAnswer(t, l, early)
	if peer, ok := vsock.PeerOf(c); !ok || peer != tremplinOf {
		t.Errorf("the peer is %v", peer)
	}
	if c.LocalAddr() != l.Addr() || l.Addr() != net.Addr(vsock.Addr{CID: vsock.CIDHost, Port: 7778}) {
		t.Errorf("this end is %v, the listener's %v", c.LocalAddr(), l.Addr())
	}
	// Nobody else has the stream any more.
	c.Close()
	if b, err := io.ReadAll(early); err != nil || len(b) > 0 {
		t.Errorf("read %q, %v after the end", b, err)
	}
}

// A receiver that dies loses nothing but what it had; the next one goes on.
func TestPassageToTheNextReceiver(t *testing.T) {
	inner, path := unixListener(t)
	p := vsock.NewPassage(inner)
	defer p.Close()
	first := receiver(t, p)
	acceptAndAnswer(t, first, dialUnix(t, path))
	first.Close()
	waiting := dialUnix(t, path)
	second := receiver(t, p)
	acceptAndAnswer(t, second, waiting)
	// One that takes over while the other is there ends that one's listener.
	third := receiver(t, p)
	if _, err := second.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the one before: %v", err)
	}
	acceptAndAnswer(t, third, dialUnix(t, path))
	p.Close()
	if _, err := third.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the passage's end: %v", err)
	}
	if _, err := p.Open(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("opened after the end: %v", err)
	}
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("the listener is still there: %v", err)
	}
}

// One that takes nothing holds up the passage and nothing else: what is under
// way is bounded, the rest waits with the listener, and the next one gets that.
func TestPassageBoundsWhatIsUnderWay(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7778)
	defer d.Close()
	g, err := d.Guest(vsock.Addr{VM: "abc", CID: 33})
	if err != nil {
		t.Fatal(err)
	}
	p := vsock.NewPassage(g)
	defer p.Close()
	idle, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	// Real sockets, as a pipe of Go's has no descriptor.
	const many = vsock.Backlog + 200
	closed := make(chan int, many)
	for i := range many {
		theirs, ours := socketPair(t)
		defer theirs.Close()
		kl.events <- &kernelConn{Conn: ours, from: kernelAddr(33, uint32(i)), closed: make(chan struct{})}
		go func() {
			theirs.SetReadDeadline(time.Now().Add(patience))
			if _, err := theirs.Read(make([]byte, 1)); err == io.EOF {
				closed <- i
			}
		}()
	}
	// More than a hundred found no place.
	for range 100 {
		select {
		case <-closed:
		case <-time.After(patience):
			t.Fatal("everything waits")
		}
	}
	l := receiver(t, p)
	if c, err := l.Accept(); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// A stream that was passed is a net.Conn in every respect.
func TestPassedConn(t *testing.T) {
	nettest.TestConn(t, func() (ours, theirs net.Conn, stop func(), err error) {
		inner, path := unixListener(t)
		p := vsock.NewPassage(inner)
		l := receiver(t, p)
		theirs = dialUnix(t, path)
		if ours, err = l.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return ours, theirs, func() { ours.Close(); theirs.Close(); l.Close(); p.Close() }, nil
	})
}

// What is no stream is thrown away, and the next one heard all the same.
func TestPassedListenerIsUnmoved(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	l, err := vsock.ListenerFile(theirs, tremplinOf, 7778, true)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	stream := os.NewFile(uintptr(pair[0]), "stream")
	defer stream.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for what, packet := range map[string]struct {
		data   string
		rights []int
	}{
		"no descriptor":   {"\x05\x00\x00\x00", nil},
		"two descriptors": {"\x05\x00\x00\x00", []int{pair[1], pair[1]}},
		"too short":       {"\x05", []int{pair[1]}},
		"too long":        {"123456789", []int{pair[1]}},
		"a file":          {"\x05\x00\x00\x00", []int{int(null.Fd())}},
	} {
		var oob []byte
		if packet.rights != nil {
			oob = unix.UnixRights(packet.rights...)
		}
		if err := unix.Sendmsg(fds[0], []byte(packet.data), oob, nil, 0); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := unix.Sendmsg(fds[0], []byte{9, 1, 0, 0}, unix.UnixRights(pair[1]), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[1])
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if peer, _ := vsock.PeerOf(c); peer.Port != 265 {
		t.Errorf("it comes from %v", peer)
	}
	c.Close()
	// Descriptors of what was thrown away are closed: the far end ends.
	far, err := net.FileConn(stream)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	far.SetReadDeadline(time.Now().Add(patience))
	if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestListenerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	f, err := inner.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	guest := vsock.Addr{VM: "abc", CID: 33}
	l, err := vsock.ListenerFile(f, guest, 8889, false)
	if err != nil {
		t.Fatal(err)
	}
	c := acceptAndAnswer(t, l, dialUnix(t, path))
	if peer, _ := vsock.PeerOf(c); peer != guest {
		t.Errorf("the peer is %v", peer)
	}
	l.Close()
	// The socket is somebody else's, and so is its name.
	dialUnix(t, path)

	stream, other := socketPair(t)
	defer other.Close()
	defer stream.Close()
	notListening, err := stream.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer notListening.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for what, test := range map[string]struct {
		f      *os.File
		passed bool
	}{
		"a listener for a passage": {f, true}, "a stream for a listener": {notListening, false},
		"a stream for a passage": {notListening, true}, "no socket": {null, false}, "no socket for a passage": {null, true},
	} {
		if l, err := vsock.ListenerFile(test.f, guest, 8889, test.passed); err == nil {
			l.Close()
			t.Errorf("%s is taken", what)
		}
	}
}
