package maitred

import (
	"net"
	"sync"
	"time"
)

// How much one guest may send to an endpoint of the host, over all its
// connections: so many bytes per second after a first so many at once. What it
// sends costs the host work whatever it is (calls given up at once, pings,
// settings), and a guest that wants to keep the host busy needs no answers.
const (
	callRate, callBurst = 64 << 10, 1 << 20
	// A guest's log has a rate of its own, an eighth of this.
	logRate, logBurst = 1 << 20, 4 << 20
)

// A pacedListener is that of one guest.
type pacedListener struct {
	net.Listener
	pace *pace
}

func paced(l net.Listener, rate, burst int) net.Listener {
	return &pacedListener{l, &pace{rate: float64(rate), burst: float64(burst), left: float64(burst), last: time.Now()}}
}

func (l *pacedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &pacedConn{Conn: c, pace: l.pace, closed: make(chan struct{})}, nil
}

// A pace counts what has come.
type pace struct {
	rate, burst float64

	mu   sync.Mutex
	left float64 // below zero after a long read
	last time.Time
}

// spend counts n bytes, and says for how long nothing more may be read.
func (p *pace) spend(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.left = min(p.left+now.Sub(p.last).Seconds()*p.rate, p.burst) - float64(n)
	p.last = now
	if p.left >= 0 {
		return 0
	}
	return time.Duration(-p.left / p.rate * float64(time.Second))
}

// A pacedConn reads no faster than its guest's pace.
type pacedConn struct {
	net.Conn
	pace   *pace
	closed chan struct{}
	once   sync.Once
}

func (c *pacedConn) Read(b []byte) (int, error) {
	if wait := c.pace.spend(0); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n, err := c.Conn.Read(b)
	c.pace.spend(n)
	return n, err
}

func (c *pacedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
