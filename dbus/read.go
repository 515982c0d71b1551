package dbus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// fixedLen is the part of a message's header that has a constant length.
	fixedLen = 16
	// headerSlack is what a message may have on top of a payload of the
	// largest size: its header fields and the body's framing.
	headerSlack = 64 << 10
	// discardChunk is how much of an unwanted message is held at a time.
	discardChunk = 32 << 10
	// scmMaxFD is the kernel's limit of descriptors per control message.
	scmMaxFD = 253
)

// A message is one that arrived. It owns the descriptors that came with it.
type message struct {
	fixedHeader
	header
	// raw is the whole message, nil when it was too large to be kept.
	raw []byte
	// fds are the descriptors nobody has taken yet.
	fds []int
	// lost says that there were descriptors the process could not receive.
	lost bool
	// err says what is wrong with the header fields; the stream is intact.
	err error
}

func (m *message) bodyBytes() []byte { return m.raw[m.offset:] }

// closeFDs closes the descriptors that nobody took.
func (m *message) closeFDs() {
	closeAll(m.fds)
	m.fds = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// reader takes messages off a connection, one at a time.
type reader struct {
	sock *net.UnixConn
	rest io.Reader // sock, for what follows a fixed header
	// limit is the length of the longest message that is kept.
	limit int
	fixed [fixedLen]byte
	oob   []byte
}

func newReader(sock *net.UnixConn, limit int) *reader {
	return &reader{sock: sock, rest: sock, limit: limit, oob: make([]byte, unix.CmsgSpace(scmMaxFD*4))}
}

// next waits for a message. An error means that the connection is of no more
// use; whatever else is wrong is in the message.
func (r *reader) next() (*message, error) {
	m := new(message)
	if err := r.readFixed(m); err != nil {
		m.closeFDs()
		return nil, err
	}
	if err := r.readRest(m); err != nil {
		m.closeFDs()
		return nil, err
	}
	if m.err == nil {
		m.err = m.check(m.typ)
	}
	if m.err == nil && !m.lost && int(m.header.fds) != len(m.fds) {
		m.err = fmt.Errorf("%w: %d descriptors came, %d were announced", errMalformed, len(m.fds), m.header.fds)
	}
	return m, nil
}

// readFixed reads the fixed header and no byte more, because the descriptors
// that a message carries arrive with its first byte: those received here are
// this message's and no other's.
func (r *reader) readFixed(m *message) error {
	for n := 0; n < fixedLen; {
		k, oobn, flags, _, err := r.sock.ReadMsgUnix(r.fixed[n:], r.oob)
		if oobn > 0 {
			m.fds = append(m.fds, receivedFDs(r.oob[:oobn])...)
		}
		// Truncation means that our table of open files is full. It is the
		// message that fails then, not the service.
		m.lost = m.lost || flags&unix.MSG_CTRUNC != 0
		if err == nil && k == 0 {
			err = io.EOF
		}
		if err != nil {
			return err
		}
		n += k
	}
	var err error
	m.fixedHeader, err = parseFixed(&r.fixed)
	return err
}

func (r *reader) readRest(m *message) error {
	if m.total > r.limit {
		return r.discard(m)
	}
	return r.buffer(m)
}

// buffer reads the rest of a message whole.
func (r *reader) buffer(m *message) error {
	m.raw = make([]byte, m.total)
	copy(m.raw, r.fixed[:])
	if _, err := io.ReadFull(r.rest, m.raw[fixedLen:]); err != nil {
		return noEOF(err)
	}
	m.header, m.err = scanHeader(&memory{m.raw[fixedLen:]}, m.order, m.fields)
	return nil
}

// discard reads the rest of a message and keeps nothing but short header
// fields, so that the sender can be told.
func (r *reader) discard(m *message) error {
	m.closeFDs()
	rest := &io.LimitedReader{R: r.rest, N: int64(m.total - fixedLen)}
	buf := bufio.NewReaderSize(rest, discardChunk)
	m.header, m.err = scanHeader(stream{buf}, m.order, m.fields)
	m.header.fds = 0
	if _, err := buf.Discard(int(rest.N) + buf.Buffered()); err != nil {
		return noEOF(err)
	}
	return nil
}

// noEOF tells a message cut off from an orderly end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// receivedFDs lists the descriptors in a control message. They are
// close-on-exec already.
func receivedFDs(oob []byte) []int {
	cmsgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for i := range cmsgs {
		if fds, err := syscall.ParseUnixRights(&cmsgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
