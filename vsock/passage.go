package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// passedBytes is the length of a packet: the guest's port, little-endian.
const passedBytes = 4

func passedPort(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// passedInFlight bounds, in bytes, what waits in a passage's socket: the
// kernel's least, a handful of streams. More wait with the listener, which
// closes what is too much.
const passedInFlight = 4096

// streamOf makes a stream of a descriptor, of whichever family it is.
func streamOf(f *os.File, from, local Addr) (*Conn, error) {
	c, err := socket.FileConn(f, from.String())
	if err != nil {
		return nil, err
	}
	return NewConn(kernelConn{c}, local, from), nil
}

// A Passage hands the streams that one listener accepts to another process,
// each as a descriptor. While nobody takes them they wait with the listener.
type Passage struct {
	l    net.Listener
	done chan struct{}

	mu     sync.Mutex
	to     *net.UnixConn // whoever takes them, nil while nobody does
	opened chan struct{} // closed when that changes
	closed bool
}

// NewPassage begins to hand on what l accepts, which it closes with itself.
func NewPassage(l net.Listener) *Passage {
	p := &Passage{l: l, done: make(chan struct{}), opened: make(chan struct{})}
	go p.run()
	return p
}

// Open returns the end over which streams come, for ListenerFile. Whoever had
// it before gets no more.
func (p *Passage) Open() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a passage for streams: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "passage"), os.NewFile(uintptr(fds[1]), "passage")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, fmt.Errorf("make a passage for streams: %w", err)
	}
	to := c.(*net.UnixConn)
	if err := to.SetWriteBuffer(passedInFlight); err != nil {
		to.Close()
		theirs.Close()
		return nil, fmt.Errorf("make a passage for streams: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		to.Close()
		theirs.Close()
		return nil, net.ErrClosed
	}
	p.replace(to)
	return theirs, nil
}

// replace says who takes streams from now on. The caller holds the lock.
func (p *Passage) replace(to *net.UnixConn) {
	if p.to != nil {
		p.to.Close()
	}
	p.to = to
	close(p.opened)
	p.opened = make(chan struct{})
}

// Close ends the passage and the listener.
func (p *Passage) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.replace(nil)
	}
	p.mu.Unlock()
	err := p.l.Close()
	<-p.done
	return err
}

func (p *Passage) run() {
	defer close(p.done)
	for p.taker() != nil {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.pass(c)
		c.Close()
	}
}

// taker waits until somebody takes streams; nil is the end.
func (p *Passage) taker() *net.UnixConn {
	for {
		p.mu.Lock()
		to, opened, closed := p.to, p.opened, p.closed
		p.mu.Unlock()
		switch {
		case closed:
			return nil
		case to != nil:
			return to
		}
		<-opened
	}
}

// pass hands a stream to whoever takes it, the next one when that one is not
// there any more. What cannot be handed on is closed.
func (p *Passage) pass(c net.Conn) {
	f, err := descriptorOf(c)
	if err != nil {
		return
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	var packet [passedBytes]byte
	if from, ok := PeerOf(c); ok {
		binary.LittleEndian.PutUint32(packet[:], from.Port)
	}
	for to := p.taker(); to != nil; to = p.taker() {
		cerr := raw.Control(func(fd uintptr) { err = p.send(to, packet[:], unix.UnixRights(int(fd))) })
		if cerr != nil || err == nil {
			return
		}
		p.mu.Lock()
		if p.to == to {
			p.replace(nil)
		}
		p.mu.Unlock()
	}
}

// send writes one packet. The kernel's bound on descriptors under way is this
// user's as a whole: it passes.
func (p *Passage) send(to *net.UnixConn, packet, rights []byte) error {
	for {
		_, _, err := to.WriteMsgUnix(packet, rights, nil)
		if !errors.Is(err, unix.ETOOMANYREFS) {
			return err
		}
		p.mu.Lock()
		opened := p.opened
		p.mu.Unlock()
		pause := time.NewTimer(acceptPause)
		select {
		case <-pause.C:
		case <-opened:
			pause.Stop()
			return net.ErrClosed
		}
	}
}
