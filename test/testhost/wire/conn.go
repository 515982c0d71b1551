package wire

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
)

func dialer(dial func() (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return dial() }
}

// Once returns a dial function that hands out one connection, once.
func Once(conn net.Conn) func() (net.Conn, error) {
	taken := make(chan net.Conn, 1)
	taken <- conn
	return func() (net.Conn, error) {
		select {
		case c := <-taken:
			return c, nil
		default:
			return nil, errors.New("the connection to the test host's agent is gone")
		}
	}
}

// A Single is a listener with one connection to accept.
type Single struct {
	conn   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewSingle returns a listener that accepts conn, and then blocks until it is
// closed.
func NewSingle(conn net.Conn) *Single {
	s := &Single{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	s.conn <- conn
	return s
}

func (s *Single) Accept() (net.Conn, error) {
	select {
	case c := <-s.conn:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *Single) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *Single) Addr() net.Addr { return portAddr{} }

// A FileConn makes a connection of a device that is one.
type FileConn struct{ *os.File }

func (FileConn) LocalAddr() net.Addr  { return portAddr{} }
func (FileConn) RemoteAddr() net.Addr { return portAddr{} }

type portAddr struct{}

func (portAddr) Network() string { return "virtio-serial" }
func (portAddr) String() string  { return Port }
