package vsock

import (
	"io"
	"net"
	"strconv"
	"syscall"
)

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// A Conn is a stream with both ends named.
type Conn struct {
	net.Conn
	local, remote Addr
	// most bounds one write to the transport, in bytes; zero is no bound.
	most int
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
	_ net.Listener = (*Listener)(nil)
)

// NewConn names the ends of an existing stream.
func NewConn(c net.Conn, local, remote Addr) *Conn {
	return &Conn{Conn: c, local: local, remote: remote}
}

// LocalAddr returns this end, an Addr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the far end, an Addr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SyscallConn gives access to the descriptor, for handing it on.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, opError("control", c.local, c.remote, syscall.ENOTSUP)
}

// Read reads from the stream.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && err != io.EOF {
		err = opError("read", c.local, c.remote, err)
	}
	return n, err
}

// Write writes to the stream.
func (c *Conn) Write(p []byte) (int, error) {
	sent := 0
	for {
		part := p[sent:]
		if c.most > 0 && len(part) > c.most {
			part = part[:c.most]
		}
		n, err := c.Conn.Write(part)
		sent += n
		if err != nil {
			return sent, opError("write", c.local, c.remote, err)
		}
		if sent >= len(p) {
			return sent, nil
		}
	}
}

// A Listener accepts streams from one guest on one port.
type Listener struct {
	net.Listener
	local, peer Addr
}

// NewListener returns a listener that names every stream accepted from l as
// coming from the guest peer. The far port is unknown in user mode and stays
// zero.
func NewListener(l net.Listener, peer Addr, port uint32) *Listener {
	return &Listener{Listener: l, local: Addr{CID: CIDHost, Port: port}, peer: peer}
}

// Accept waits for the next stream.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, opError("accept", l.local, l.peer, err)
	}
	return NewConn(c, l.local, l.peer), nil
}

// Addr returns the listening end.
func (l *Listener) Addr() net.Addr { return l.local }

// opError is the one place where failures get their shape.
func opError(op string, local, remote Addr, err error) error {
	if oe, ok := err.(*net.OpError); ok {
		err = oe.Err
	}
	return &net.OpError{Op: op, Net: "vsock", Source: local, Addr: remote, Err: err}
}
