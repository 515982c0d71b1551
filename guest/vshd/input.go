package vshd

import (
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// keepBuffer is the size up to which an emptied buffer is kept for more input.
const keepBuffer = 2 * eager

// An input is the queue of a session's input, between the client's frames and
// a process that may not read. It is bounded.
type input struct {
	limit  int
	filled chan struct{} // has a token after a change that take waits for
	room   chan struct{} // has a token after a change that put waits for

	// direct writes what the process takes at once; nil where there is no such
	// way.
	direct func([]byte) (int, error)

	mu      sync.Mutex
	waiting []byte
	taken   bool // the feeder still has something to write
	eof     bool
	closed  bool
}

func newInput(limit int) *input {
	return &input{limit: limit, filled: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// eager is up to how much input, in bytes, is taken off the stream as it
// comes. What is beyond waits there while the process reads: taken packet by
// packet, it costs the guest several times as much.
const eager = 256 << 10

// enough reports whether the process has all the input that it can need soon.
func (q *input) enough() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) >= eager && !q.closed
}

// put queues data and reports true, or false when the queue is full. Input
// after its end, or that nobody wants any more, is dropped.
func (q *input) put(data []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.eof || q.closed:
		return true
	case len(q.waiting) >= q.limit:
		return false
	}
	if q.direct != nil && len(q.waiting) == 0 && !q.taken {
		// Nothing is before it, and handing it over would cost more.
		n, err := q.direct(data)
		if err != nil {
			q.closed = true
			notify(q.filled)
			return true
		}
		if data = data[n:]; len(data) == 0 {
			return true
		}
	}
	q.waiting = append(q.waiting, data...)
	notify(q.filled)
	return true
}

// end marks the end of the input.
func (q *input) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.eof = true
	notify(q.filled)
}

// close drops what is queued and all that comes.
func (q *input) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.waiting = nil
	notify(q.filled)
	notify(q.room)
}

// take waits for input and returns all there is, in exchange for a buffer that
// the caller no longer needs. The error is io.EOF at the end of the input and
// io.ErrClosedPipe after close.
func (q *input) take(spare []byte) ([]byte, error) {
	if cap(spare) > keepBuffer {
		spare = nil
	}
	for {
		q.mu.Lock()
		data, eof, closed := q.waiting, q.eof, q.closed
		q.taken = len(data) > 0
		if len(data) > 0 {
			q.waiting = spare[:0]
			notify(q.room)
		}
		q.mu.Unlock()
		switch {
		case closed:
			return nil, io.ErrClosedPipe
		case len(data) > 0:
			return data, nil
		case eof:
			return nil, io.EOF
		}
		<-q.filled
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// writeNow writes what the process's input has room for.
func (p *process) writeNow(data []byte) (n int, err error) {
	raw, err := p.input.SyscallConn()
	if err != nil {
		return 0, err
	}
	var werr error
	err = raw.Write(func(fd uintptr) bool {
		n, werr = writeNow(int(fd), data)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case werr == unix.EAGAIN:
		return 0, nil
	case werr != nil:
		return 0, werr
	}
	return n, nil
}

// feed gives the process its input until that ends or the process stops
// reading for good.
func (p *process) feed(q *input) {
	var data []byte
	var last byte
	for {
		var err error
		data, err = q.take(data)
		if err == io.EOF {
			p.endInput(last)
			return
		}
		if err != nil {
			return
		}
		if _, err := p.input.Write(data); err != nil {
			q.close()
			return
		}
		last = data[len(data)-1]
	}
}
