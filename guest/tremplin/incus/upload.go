package incus

import (
	"context"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
)

// A watchedConn tells of its end. net/http, which has noticed it, waits first
// for the next bytes of what it sends, and they may never come.
type watchedConn struct {
	net.Conn

	mu    sync.Mutex
	err   error // how it ended
	ended func(error)
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.mu.Lock()
		c.err = err
		tell := c.ended
		c.mu.Unlock()
		if tell != nil {
			tell(err)
		}
	}
	return n, err
}

// whenEnded has the last who asked told of the end.
func (c *watchedConn) whenEnded(tell func(error)) {
	c.mu.Lock()
	c.ended = tell
	err := c.err
	c.mu.Unlock()
	if err != nil {
		tell(err)
	}
}

// bounded is for a request that sends body: it ends with its connection.
func bounded(ctx context.Context, body *io.PipeReader) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if c, ok := i.Conn.(*watchedConn); ok {
			c.whenEnded(func(err error) {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF // the body is not at its end
				}
				body.CloseWithError(err)
			})
		}
	}})
}
