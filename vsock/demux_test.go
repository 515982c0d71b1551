package vsock_test

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	mdlayher "github.com/mdlayher/vsock"

	"github.com/auberge-vm/auberge/vsock"
)

// kernelListener stands for a listening AF_VSOCK socket, which no test may
// have of this machine.
type kernelListener struct {
	events chan any // a net.Conn or an error
	once   sync.Once
	closed chan struct{}
}

func newKernelListener() *kernelListener {
	return &kernelListener{events: make(chan any), closed: make(chan struct{})}
}

func (l *kernelListener) Accept() (net.Conn, error) {
	select {
	case e := <-l.events:
		if c, ok := e.(net.Conn); ok {
			return c, nil
		}
		return nil, e.(error)
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *kernelListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *kernelListener) Addr() net.Addr { return &mdlayher.Addr{ContextID: vsock.CIDHost, Port: 7777} }

// A kernelConn is a stream from a CID, which tells when it is closed.
type kernelConn struct {
	net.Conn
	from   net.Addr
	once   sync.Once
	closed chan struct{}
}

func (c *kernelConn) RemoteAddr() net.Addr { return c.from }

func (c *kernelConn) SyscallConn() (syscall.RawConn, error) {
	return c.Conn.(syscall.Conn).SyscallConn()
}

func (c *kernelConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// dial lets a stream from a CID arrive.
func (l *kernelListener) dial(t *testing.T, cid, port uint32) *kernelConn {
	t.Helper()
	return l.arrive(t, kernelAddr(cid, port))
}

func kernelAddr(cid, port uint32) net.Addr { return &mdlayher.Addr{ContextID: cid, Port: port} }

func (l *kernelListener) arrive(t *testing.T, from net.Addr) *kernelConn {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	c := &kernelConn{Conn: a, from: from, closed: make(chan struct{})}
	l.events <- c
	return c
}

func TestDemuxSortsByCID(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7777)
	defer d.Close()
	ada, err := d.Guest(vsock.Addr{VM: "ada", CID: 33})
	if err != nil {
		t.Fatal(err)
	}
	bob, err := d.Guest(vsock.Addr{VM: "bob", CID: 34})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Guest(vsock.Addr{VM: "eve", CID: 33}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener for a CID: %v", err)
	}
	kl.dial(t, 34, 1000)
	kl.dial(t, 33, 2000)
	for _, test := range []struct {
		l    net.Listener
		want vsock.Addr
	}{{ada, vsock.Addr{VM: "ada", CID: 33, Port: 2000}}, {bob, vsock.Addr{VM: "bob", CID: 34, Port: 1000}}} {
		c, err := test.l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if p, _ := vsock.PeerOf(c); p != test.want {
			t.Errorf("the peer is %v, want %v", p, test.want)
		}
		if c.LocalAddr() != test.l.Addr() || test.l.Addr() != net.Addr(vsock.Addr{CID: vsock.CIDHost, Port: 7777}) {
			t.Errorf("this end is %v, the listener %v", c.LocalAddr(), test.l.Addr())
		}
	}
	// Whoever is nobody's guest is turned away, and so is what is no vsock.
	<-kl.dial(t, 99, 1).closed
	// So are processes of the host, over its loopback and otherwise.
	for cid := range uint32(3) {
		<-kl.dial(t, cid, 1023).closed
	}
	<-kl.dial(t, vsock.CIDAny, 1).closed
	<-kl.arrive(t, &net.UnixAddr{Name: "x"}).closed
}

// A guest that does not stop dialling holds nobody up.
func TestDemuxBoundsEachGuest(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7777)
	defer d.Close()
	loud, err := d.Guest(vsock.Addr{CID: 33})
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := d.Guest(vsock.Addr{CID: 34})
	if err != nil {
		t.Fatal(err)
	}
	var waiting []*kernelConn
	for range vsock.Backlog {
		waiting = append(waiting, kl.dial(t, 33, 1))
	}
	<-kl.dial(t, 33, 1).closed
	kl.dial(t, 34, 5)
	if c, err := quiet.Accept(); err != nil || c.RemoteAddr().(vsock.Addr).Port != 5 {
		t.Errorf("the other guest's stream: %v, %v", c, err)
	}
	// What nobody accepted is closed with its listener.
	loud.Close()
	for _, c := range waiting {
		<-c.closed
	}
	if _, err := loud.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	loud.Close()
	// The CID is free again.
	if _, err := d.Guest(vsock.Addr{CID: 33}); err != nil {
		t.Error(err)
	}
}

func TestDemuxClose(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7777)
	g, err := d.Guest(vsock.Addr{CID: 33})
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := g.Accept()
		accepted <- err
	}()
	d.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := d.Guest(vsock.Addr{CID: 34}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen after close: %v", err)
	}
	g.Close()
	d.Close()
}

// When the host is short of descriptors, guests are cut off for a moment and
// not for good.
func TestDemuxSurvivesShortage(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7777)
	defer d.Close()
	g, err := d.Guest(vsock.Addr{CID: 33})
	if err != nil {
		t.Fatal(err)
	}
	short := &net.OpError{Op: "accept", Net: "vsock", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	kl.events <- short
	kl.events <- short
	kl.dial(t, 33, 7)
	if c, err := g.Accept(); err != nil || c.RemoteAddr().(vsock.Addr).Port != 7 {
		t.Errorf("after a shortage: %v, %v", c, err)
	}
	// Any other failure ends it, and everybody learns of it.
	kl.events <- errors.New("the socket is broken")
	if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("with a broken socket: %v", err)
	}
}

// Guests come and go while streams arrive.
func TestDemuxAtOnce(t *testing.T) {
	kl := newKernelListener()
	d := vsock.NewDemux(kl, 7777)
	var wg sync.WaitGroup
	for cid := range uint32(4) {
		wg.Go(func() {
			for range 20 {
				g, err := d.Guest(vsock.Addr{CID: cid})
				if err != nil {
					t.Error(err)
					return
				}
				if cid%2 == 0 { // the odd ones only come and go
					if c, err := g.Accept(); err == nil {
						c.Close()
					}
				}
				g.Close()
			}
		})
	}
	stop, fed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(fed)
		for i := uint32(0); ; i++ {
			a, b := net.Pipe()
			defer b.Close()
			c := &kernelConn{Conn: a, from: &mdlayher.Addr{ContextID: i % 5, Port: i}, closed: make(chan struct{})}
			select {
			case kl.events <- c:
			case <-stop:
				c.Close()
				return
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-fed
	d.Close()
}

func TestAcceptable(t *testing.T) {
	for _, test := range []struct {
		cid, port    uint32
		reservedOnly bool
		want         bool
	}{
		{vsock.CIDHost, 1023, true, true},
		{vsock.CIDHost, 1024, true, false},
		{vsock.CIDHost, 1024, false, true},
		{vsock.CIDHost, 1<<32 - 1, true, false},
		{1, 1000, false, false}, // loopback within the guest
		{0, 1000, false, false},
		{33, 1000, false, false},
		{33, 1000, true, false},
		{vsock.CIDAny, 1000, false, false},
	} {
		if got := vsock.Acceptable(test.cid, test.port, test.reservedOnly); got != test.want {
			t.Errorf("acceptable(%d, %d, %t) = %t", test.cid, test.port, test.reservedOnly, got)
		}
	}
}

// Source ports are all tried, all below 1024, and not always in the same order:
// a guest that was suspended may still know a stream from the last one.
func TestSourcePorts(t *testing.T) {
	first := map[uint32]bool{}
	for range 50 {
		var all []uint32
		for p := range vsock.SourcePorts() {
			all = append(all, p)
		}
		first[all[0]] = true
		slices.Sort(all)
		if len(slices.Compact(all)) != 512 || all[0] != 512 || all[511] != 1023 {
			t.Fatalf("%d ports from %d to %d", len(all), all[0], all[len(all)-1])
		}
	}
	if len(first) < 5 {
		t.Errorf("50 times it began with %v", first)
	}
}
