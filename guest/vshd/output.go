package vshd

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// drainLimits say how long output is waited for after the process has exited,
// when something else keeps its files open.
type drainLimits struct {
	silence time.Duration // without any output
	total   time.Duration // of silence altogether
	bytes   int           // of output, more than a pipe or terminal holds
}

// A pump sends what a source gives, in batches: all that is there at once goes
// out in one write, and nothing waits for more.
type pump struct {
	source
	out    *vshpb.Writer
	limits drainLimits
	buf    []byte
}

// Buffers of a pump grow with what is found in them, in bytes, and pipes are
// made to hold as much: every change between the process and vshd costs, in an
// emulated guest more than the data does.
const (
	pumpFirst = vshpb.BatchData
	pumpMost  = 16 * vshpb.BatchData
	pipeSize  = 1 << 20
)

// grow makes room for more when n bytes were all that there was room for.
func (p *pump) grow(n int) {
	if n == len(p.buf) && n < pumpMost {
		p.buf = make([]byte, 2*n)
	}
}

// run sends output until the source ends, which for the client of a pipe is a
// message of its own, or until the source is interrupted, which says that the
// process has exited. The error is the client's.
func (p *pump) run() error {
	for {
		n, _, err := p.read()
		if n > 0 {
			if err := p.out.WriteData(p.stream, p.buf[:n]); err != nil {
				return err
			}
			p.grow(n)
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return p.drain()
		default:
			return p.end(err)
		}
	}
}

// drain sends what is left after the process has exited.
func (p *pump) drain() error {
	most := p.limits.bytes
	control(p.file, func(fd int) error {
		size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
		most = max(most, size)
		return err
	})
	for left, sent := p.limits.total, 0; left > 0 && sent < most; {
		p.file.SetReadDeadline(time.Now().Add(min(p.limits.silence, left)))
		n, waited, err := p.read()
		if n > 0 {
			if err := p.out.WriteData(p.stream, p.buf[:n]); err != nil {
				return err
			}
		}
		sent += n
		left -= waited
		switch {
		case err == nil, n > 0 && errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return p.end(err)
		}
	}
	return nil
}

func (p *pump) end(err error) error {
	if err == io.EOF {
		return p.out.WriteData(p.stream, nil)
	}
	return nil // EIO of a terminal that nobody holds any more, or closed by us
}

// read waits for output and takes what there is, as far as the buffer goes,
// also when the source's deadline has passed. It tells how long there was none.
func (p *pump) read() (n int, waited time.Duration, err error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var since time.Time
	var end error
	err = raw.Read(func(fd uintptr) bool {
		n, end = readAll(int(fd), p.buf)
		if n == 0 && end == nil {
			if since.IsZero() {
				since = time.Now()
			}
			return false
		}
		return true
	})
	if !since.IsZero() {
		waited = time.Since(since)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// It may have passed before the source was looked at.
		control(p.file, func(fd int) error {
			n, end = readAll(fd, p.buf)
			return nil
		})
	}
	if end != nil {
		err = end
	}
	return n, waited, err
}

// readAll reads until there is nothing more at once, the buffer is full or the
// source ends, which is io.EOF for a pipe. It returns 0 and no error when
// there is nothing yet.
func readAll(fd int, buf []byte) (n int, err error) {
	for n < len(buf) {
		m, err := readNow(fd, buf[n:])
		switch {
		case err == unix.EAGAIN:
			return n, nil
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}
