package vsock

import (
	"context"
	"net"
	"os"
	"syscall"
	"time"

	mdlayher "github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// reservedPorts is the first port that an unprivileged process may bind as
// the source of an AF_VSOCK stream: below it, CAP_NET_BIND_SERVICE is needed.
const reservedPorts = 1024

// ListenGuest listens on a port inside a guest and accepts streams from the
// host only, so that a process or container in the guest cannot reach an
// agent over loopback. With reservedOnly, needed where the host's transport
// is the kernel's, streams from unreserved source ports are dropped too:
// there any user of the host can dial.
func ListenGuest(port uint32, reservedOnly bool) (net.Listener, error) {
	l, err := mdlayher.Listen(port, nil)
	if err != nil {
		return nil, err
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
		return NewConn(c, Addr{Port: g.port}, Addr{CID: a.ContextID, Port: a.Port}), nil
	}
}

func acceptable(cid, port uint32, reservedOnly bool) bool {
	return cid == CIDHost && (!reservedOnly || port < reservedPorts)
}

// DialHost opens a stream from a guest to a port of its host.
func DialHost(ctx context.Context, port uint32) (*Conn, error) {
	return dialCID(ctx, CIDHost, port, false)
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

func dialCID(ctx context.Context, cid, port uint32, reserved bool) (*Conn, error) {
	remote := Addr{CID: cid, Port: port}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, opError("dial", Addr{}, remote, err)
	}
	if reserved {
		if err := bindReserved(fd); err != nil {
			unix.Close(fd)
			return nil, opError("dial", Addr{}, remote, err)
		}
	}
	if err := connect(ctx, fd, cid, port); err != nil {
		unix.Close(fd)
		return nil, opError("dial", Addr{}, remote, err)
	}
	f := newFile(fd)
	defer f.Close()
	c, err := mdlayher.FileConn(f)
	if err != nil {
		return nil, opError("dial", Addr{}, remote, err)
	}
	local := Addr{}
	if a, ok := c.LocalAddr().(*mdlayher.Addr); ok {
		local = Addr{CID: a.ContextID, Port: a.Port}
	}
	return NewConn(c, local, remote), nil
}

// bindReserved takes the highest free source port below 1024.
func bindReserved(fd int) error {
	for p := uint32(reservedPorts - 1); p >= 512; p-- {
		err := unix.Bind(fd, &unix.SockaddrVM{CID: CIDAny, Port: p})
		if err != unix.EADDRINUSE {
			return err
		}
	}
	return unix.EADDRINUSE
}

// connect waits for a non-blocking connect in slices, so that a cancelled
// context ends it.
func connect(ctx context.Context, fd int, cid, port uint32) error {
	err := unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	if err != unix.EINPROGRESS {
		return err
	}
	const slice = 50 * time.Millisecond
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		if err == unix.EINTR || (err == nil && n == 0) {
			continue
		}
		if err != nil {
			return err
		}
		soerr, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if soerr != 0 {
			return syscall.Errno(soerr)
		}
		return nil
	}
}

func newFile(fd int) *os.File { return os.NewFile(uintptr(fd), "vsock") }
