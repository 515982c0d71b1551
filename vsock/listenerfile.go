package vsock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenerFile is where the streams of one guest to a port of the host arrive,
// for a process that was given f by another. f is a listening Unix socket, or
// with passed the end of a Passage, over which the other process hands on the
// streams that it accepts. The file stays the caller's.
func ListenerFile(f *os.File, guest Addr, port uint32, passed bool) (net.Listener, error) {
	local := Addr{CID: CIDHost, Port: port}
	kind, listening, err := socketKind(f)
	want := unix.SOCK_STREAM
	if passed {
		want = unix.SOCK_SEQPACKET
	}
	switch {
	case err != nil:
	case kind != want, listening == passed:
		err = fmt.Errorf("the socket has the type %d and listens: %t", kind, listening)
	case passed:
		var c net.Conn
		if c, err = net.FileConn(f); err == nil {
			return &passedListener{c: c.(*net.UnixConn), local: local, guest: guest}, nil
		}
	default:
		var l net.Listener
		if l, err = net.FileListener(f); err == nil {
			// The name is that of whoever made the socket.
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			return NewListener(l, guest, port), nil
		}
	}
	return nil, opError("listen", local, guest, err)
}

// socketKind tells what a Unix socket is.
func socketKind(f *os.File) (kind int, listening bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var domain, accepts int
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		if domain != unix.AF_UNIX {
			err = fmt.Errorf("no Unix socket but one of the family %d", domain)
			return
		}
		if kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return
		}
		accepts, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		listening = accepts != 0
	})
	if cerr != nil {
		err = cerr
	}
	return kind, listening, err
}

// passedListener accepts the streams that come over a Passage.
type passedListener struct {
	c            *net.UnixConn
	local, guest Addr
}

func (l *passedListener) Addr() net.Addr { return l.local }
func (l *passedListener) Close() error   { return l.c.Close() }

// Accept waits for the next stream. The end of the passage is the end of the
// listener, net.ErrClosed.
func (l *passedListener) Accept() (net.Conn, error) {
	for {
		f, port, err := receiveStream(l.c)
		if err == errNoStream {
			continue // one that was no stream any more is no reason to hear no others
		}
		if err != nil {
			return nil, opError("accept", l.local, l.guest, err)
		}
		from := l.guest
		from.Port = port
		c, err := streamOf(f, from, l.local)
		f.Close()
		if err != nil {
			continue
		}
		return c, nil
	}
}

var errNoStream = errors.New("a packet without a stream")

// receiveStream reads one packet, whose bytes are the guest's port and which
// has one descriptor beside it.
func receiveStream(c *net.UnixConn) (f *os.File, port uint32, err error) {
	data := make([]byte, 8)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	if errors.Is(err, io.EOF) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, 0, err
	}
	fds := rightsIn(oob[:oobn])
	switch {
	case len(fds) == 1 && n == passedBytes && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0:
		kind, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && kind == unix.SOCK_STREAM && unix.SetNonblock(fds[0], true) == nil {
			return os.NewFile(uintptr(fds[0]), "stream"), passedPort(data), nil
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil, 0, errNoStream
}

func rightsIn(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if some, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds
}

// descriptorOf duplicates what a stream is made of.
func descriptorOf(c net.Conn) (*os.File, error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil, syscall.ENOTSUP
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stream"), nil
}
