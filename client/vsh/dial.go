package vsh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/godbus/dbus/v5"
	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/vsock"
)

// The concierge on the bus.
const (
	conciergeName = "org.chromium.VmConcierge"
	conciergePath = "/org/chromium/VmConcierge"
	concierge1    = "io.github.auberge_vm.Concierge1"
)

// Dial asks the concierge on bus for a stream to the vshd of a VM. An empty
// owner is the caller.
func Dial(ctx context.Context, conn *dbus.Conn, vm, owner string) (net.Conn, error) {
	var fd dbus.UnixFD
	call := bus.Call(ctx, conn, conciergeName, conciergePath, concierge1, "ConnectVsock", vm, owner, vsock.PortVshd)
	if err := call.Store(&fd); err != nil {
		return nil, fmt.Errorf("cannot connect to VM %q: %w", vm, explain(ctx, err))
	}
	f := os.NewFile(uintptr(fd), "vsh")
	defer f.Close()
	stream, err := fileConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to VM %q: the concierge gave no usable stream: %w", vm, err)
	}
	return stream, nil
}

// fileConn makes a net.Conn of a connected stream: a Unix socket or, from a VM
// with kernel vsock, an AF_VSOCK one, which package net does not know.
func fileConn(f *os.File) (net.Conn, error) {
	domain, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, err
	}
	if domain != unix.AF_VSOCK {
		return net.FileConn(f)
	}
	s, err := socket.FileConn(f, f.Name())
	if err != nil {
		return nil, err
	}
	return vsock.NewConn(kernelConn{s}, vsock.Addr{CID: vsock.CIDHost}, vsock.Addr{Port: vsock.PortVshd}), nil
}

// kernelConn makes a socket.Conn a net.Conn; vsock.Conn supplies the addresses.
type kernelConn struct{ *socket.Conn }

func (kernelConn) LocalAddr() net.Addr  { return nil }
func (kernelConn) RemoteAddr() net.Addr { return nil }

// explain turns an error of the bus into a sentence. What the concierge itself
// says is such a sentence already.
func explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e dbus.Error
	if !errors.As(err, &e) {
		return err
	}
	text := e.Name
	if len(e.Body) > 0 {
		if said, ok := e.Body[0].(string); ok && said != "" {
			text = printable(said)
		}
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
		return errors.New("vm_concierge is not running on this bus")
	case "org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownInterface":
		return errors.New("the vm_concierge on this bus is not Auberge's: it has no ConnectVsock")
	case "org.freedesktop.DBus.Error.AccessDenied":
		return fmt.Errorf("access denied: %s", text)
	}
	return errors.New(text)
}
