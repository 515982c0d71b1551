package vsock

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"net"
	"os"

	"github.com/mdlayher/socket"
	mdlayher "github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// reservedPorts is the first port that an unprivileged process may bind as
// the source of an AF_VSOCK stream: below it, CAP_NET_BIND_SERVICE is needed.
const reservedPorts = 1024

// guestWrite bounds one write of a guest. Linux makes one packet of a write
// of up to 64 KiB, and vhost-device-vsock 0.3.0 loses packets above some
// 60 KiB without a word (seen with Linux 6.12.117; 32 KiB arrive).
const guestWrite = 32 << 10

// ListenGuest listens on a port inside a guest and accepts streams from the
// host only, so that a process or container in the guest cannot reach an
// agent over loopback. With reservedOnly, needed where the host's transport
// is the kernel's, streams from unreserved source ports are dropped too:
// there any user of the host can dial.
func ListenGuest(port uint32, reservedOnly bool) (net.Listener, error) {
	// Not by the library's Listen, which wants /dev/vsock: containers have none.
	f, err := GuestSocket(port)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ListenGuestFile(f, port, reservedOnly)
}

// GuestSocket returns a listening socket on a port inside a guest, for another
// process to accept on with ListenGuestFile.
func GuestSocket(port uint32) (*os.File, error) { return listen(Addr{CID: CIDAny, Port: port}) }

func listen(local Addr) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, opError("listen", local, Addr{}, err)
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: local.CID, Port: local.Port})
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		unix.Close(fd)
		return nil, opError("listen", local, Addr{}, err)
	}
	return os.NewFile(uintptr(fd), local.String()), nil
}

// ListenGuestFile is ListenGuest on a socket made by GuestSocket. The file
// stays the caller's.
func ListenGuestFile(f *os.File, port uint32, reservedOnly bool) (net.Listener, error) {
	l, err := mdlayher.FileListener(f)
	if err != nil {
		return nil, opError("listen", Addr{CID: CIDAny, Port: port}, Addr{}, err)
	}
	return &guestListener{l: l, port: port, reservedOnly: reservedOnly}, nil
}

type guestListener struct {
	l            *mdlayher.Listener
	port         uint32
	reservedOnly bool
}

func (g *guestListener) Close() error   { return g.l.Close() }
func (g *guestListener) Addr() net.Addr { return Addr{CID: CIDAny, Port: g.port} }

func (g *guestListener) Accept() (net.Conn, error) {
	for {
		c, err := g.l.Accept()
		if err != nil {
			return nil, opError("accept", Addr{Port: g.port}, Addr{}, err)
		}
		a, ok := c.RemoteAddr().(*mdlayher.Addr)
		if !ok || !acceptable(a.ContextID, a.Port, g.reservedOnly) {
			c.Close()
			continue
		}
		conn := NewConn(c, Addr{Port: g.port}, Addr{CID: a.ContextID, Port: a.Port})
		conn.most = guestWrite
		return conn, nil
	}
}

func acceptable(cid, port uint32, reservedOnly bool) bool {
	return cid == CIDHost && (!reservedOnly || port < reservedPorts)
}

// DialHost opens a stream from a guest to a port of its host.
func DialHost(ctx context.Context, port uint32) (*Conn, error) {
	c, err := dialCID(ctx, CIDHost, port, false)
	if err != nil {
		return nil, err
	}
	c.most = guestWrite
	return c, nil
}

// DialKernel opens a stream from the host to a guest over AF_VSOCK from a
// reserved source port, which needs CAP_NET_BIND_SERVICE.
func DialKernel(ctx context.Context, guest Addr) (*Conn, error) {
	c, err := dialCID(ctx, guest.CID, guest.Port, true)
	if err != nil {
		return nil, err
	}
	c.remote.VM = guest.VM
	return c, nil
}

// FileConn is a stream to a guest that another process has dialled. The file
// stays the caller's.
func FileConn(f *os.File, guest Addr) (*Conn, error) {
	c, err := socket.FileConn(f, guest.String())
	if err != nil {
		return nil, opError("dial", Addr{}, guest, err)
	}
	return NewConn(kernelConn{c}, localAddr(c), guest), nil
}

// dialCID uses mdlayher/socket, on which mdlayher/vsock is built, because the
// latter cannot bind a source port.
func dialCID(ctx context.Context, cid, port uint32, reserved bool) (*Conn, error) {
	remote := Addr{CID: cid, Port: port}
	s, err := socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, "vsock", nil)
	if err != nil {
		return nil, opError("dial", Addr{}, remote, err)
	}
	if reserved {
		if err := bindReserved(s); err != nil {
			s.Close()
			return nil, opError("dial", Addr{}, remote, err)
		}
	}
	if _, err := s.Connect(ctx, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		s.Close()
		return nil, opError("dial", Addr{}, remote, err)
	}
	return NewConn(kernelConn{s}, localAddr(s), remote), nil
}

func localAddr(s *socket.Conn) Addr {
	if sa, err := s.Getsockname(); err == nil {
		if vm, ok := sa.(*unix.SockaddrVM); ok {
			return Addr{CID: vm.CID, Port: vm.Port}
		}
	}
	return Addr{}
}

// kernelConn makes a socket.Conn a net.Conn; Conn supplies the addresses.
type kernelConn struct{ *socket.Conn }

func (kernelConn) LocalAddr() net.Addr  { return nil }
func (kernelConn) RemoteAddr() net.Addr { return nil }

// firstSource is the lowest source port that we dial from.
const firstSource = 512

// bindReserved takes a free source port below 1024.
func bindReserved(s *socket.Conn) error {
	for p := range sourcePorts() {
		err := s.Bind(&unix.SockaddrVM{CID: CIDAny, Port: p})
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return unix.EADDRINUSE
}

// sourcePorts yields each once, and begins with another one each time: a guest
// that stood still has not heard of the end of the last stream yet, and a new
// one from the same port would be that one for it.
func sourcePorts() iter.Seq[uint32] {
	const n = reservedPorts - firstSource
	start := rand.Uint32N(n)
	return func(yield func(uint32) bool) {
		for i := range uint32(n) {
			if !yield(firstSource + (start+i)%n) {
				return
			}
		}
	}
}
