package vsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	mdlayher "github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// backlog is how many streams of one guest wait to be accepted; what comes
// beyond is closed, so that one guest cannot hold up the others.
const backlog = 64

// acceptPause is how long a Demux waits before it accepts again when the host
// was short of something, descriptors for example.
const acceptPause = 50 * time.Millisecond

// A Demux shares one listening socket among guests: in kernel mode a port of
// the host has a single listener, and the CID says whose stream it is.
type Demux struct {
	l       net.Listener
	port    uint32
	once    sync.Once
	closing chan struct{}
	done    chan struct{}

	mu     sync.Mutex
	guests map[uint32]*guestQueue
	closed bool
}

// KernelSocket returns a listening socket on a port of the host's AF_VSOCK, for
// DemuxFile. A host that is a VM itself has another CID too, on which it would
// hear its siblings, whose CIDs may be those of guests here: what comes there
// is not for us.
func KernelSocket(port uint32) (*os.File, error) { return listen(Addr{CID: CIDHost, Port: port}) }

// DemuxFile shares a socket made by KernelSocket among all guests. The file
// stays the caller's.
func DemuxFile(f *os.File, port uint32) (*Demux, error) {
	local := Addr{CID: CIDHost, Port: port}
	l, err := mdlayher.FileListener(f)
	if err != nil {
		return nil, opError("listen", local, Addr{}, err)
	}
	if a, ok := l.Addr().(*mdlayher.Addr); !ok || a.ContextID != CIDHost || a.Port != port {
		l.Close()
		return nil, opError("listen", local, Addr{}, fmt.Errorf("the socket is that of %v", l.Addr()))
	}
	return newDemux(l, port), nil
}

func newDemux(l net.Listener, port uint32) *Demux {
	d := &Demux{l: l, port: port, closing: make(chan struct{}), done: make(chan struct{}), guests: map[uint32]*guestQueue{}}
	go d.run()
	return d
}

func (d *Demux) run() {
	defer close(d.done)
	defer d.endGuests()
	for {
		c, err := d.l.Accept()
		switch {
		case err == nil:
			if !d.deliver(c) {
				c.Close()
			}
		case !d.goesOn(err):
			return
		}
	}
}

// goesOn waits until it is worth accepting again, if it ever is. A shortage
// must not cut all guests off for good.
func (d *Demux) goesOn(err error) bool {
	var t interface{ Temporary() bool }
	if !errors.As(err, &t) || !t.Temporary() {
		return false
	}
	pause := time.NewTimer(acceptPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-d.closing:
		return false
	}
}

func (d *Demux) deliver(c net.Conn) bool {
	a, ok := c.RemoteAddr().(*mdlayher.Addr)
	if !ok {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.guests[a.ContextID]
	if g == nil {
		return false
	}
	select {
	case g.queue <- NewConn(c, Addr{CID: CIDHost, Port: d.port}, Addr{VM: g.guest.VM, CID: g.guest.CID, Port: a.Port}):
		return true
	default:
		return false
	}
}

// Guest returns a listener for the streams of one guest. Until it is closed,
// the CID has no other.
func (d *Demux) Guest(guest Addr) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, opError("listen", Addr{CID: CIDHost, Port: d.port}, guest, net.ErrClosed)
	}
	if d.guests[guest.CID] != nil {
		return nil, opError("listen", Addr{CID: CIDHost, Port: d.port}, guest, unix.EADDRINUSE)
	}
	g := &guestQueue{demux: d, guest: guest, queue: make(chan *Conn, backlog), gone: make(chan struct{})}
	d.guests[guest.CID] = g
	return g, nil
}

// Close closes the shared socket and every guest's listener.
func (d *Demux) Close() error {
	d.once.Do(func() { close(d.closing) })
	err := d.l.Close()
	<-d.done
	return err
}

func (d *Demux) endGuests() {
	d.mu.Lock()
	d.closed = true
	guests := d.guests
	d.guests = map[uint32]*guestQueue{}
	d.mu.Unlock()
	for _, g := range guests {
		g.end()
	}
}

type guestQueue struct {
	demux *Demux
	guest Addr
	queue chan *Conn
	once  sync.Once
	gone  chan struct{}
}

func (g *guestQueue) Accept() (net.Conn, error) {
	select {
	case c := <-g.queue:
		return c, nil
	case <-g.gone:
		return nil, opError("accept", Addr{CID: CIDHost, Port: g.demux.port}, g.guest, net.ErrClosed)
	}
}

func (g *guestQueue) Addr() net.Addr { return Addr{CID: CIDHost, Port: g.demux.port} }

func (g *guestQueue) Close() error {
	g.demux.mu.Lock()
	if g.demux.guests[g.guest.CID] == g {
		delete(g.demux.guests, g.guest.CID)
	}
	g.demux.mu.Unlock()
	g.end()
	return nil
}

func (g *guestQueue) end() {
	g.once.Do(func() {
		close(g.gone)
		for {
			select {
			case c := <-g.queue:
				c.Close()
			default:
				return
			}
		}
	})
}
