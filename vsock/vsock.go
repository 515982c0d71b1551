package vsock

import (
	"net"
)

// Well-known context identifiers of AF_VSOCK (vsock(7)).
const (
	// CIDAny is VMADDR_CID_ANY.
	CIDAny uint32 = 1<<32 - 1
	// CIDHost is the host as a guest sees it, VMADDR_CID_HOST.
	CIDHost uint32 = 2
	// CIDFirst is the lowest CID that Auberge gives to a guest; 3 to 31 are
	// left for static VMs, as on ChromeOS.
	CIDFirst uint32 = 32
)

// Ports of the ChromeOS contract.
const (
	PortStartupListener   uint32 = 7777 // host: VmReady, VmInstallStatus
	PortTremplinListener  uint32 = 7778 // host: tremplin's notices
	PortCrashListener     uint32 = 7779 // host: crash reports
	PortMaitred           uint32 = 8888 // guest: Maitred
	PortContainerListener uint32 = 8889 // host: garcon's notices
	PortTremplin          uint32 = 8890 // guest: Tremplin
	PortTransfer          uint32 = 8891 // guest: containers that leave and come (our own)
	PortVshd              uint32 = 9001 // guest: remote shells
	PortLogCollector      uint32 = 9999 // host: logs of the guest
)

// HostPorts are the ports on which every guest finds the host listening.
var HostPorts = [...]uint32{
	PortStartupListener, PortTremplinListener, PortCrashListener,
	PortContainerListener, PortLogCollector,
}

// A Mode says which transport serves a VM.
type Mode string

const (
	ModeUser   Mode = "user"   // vhost-user backend, Unix sockets on the host
	ModeKernel Mode = "kernel" // vhost-vsock, AF_VSOCK on the host
)

// An Addr is one end of a stream: a guest (or the host) and a port.
// VM names the guest for people and logs; it is empty for the host.
type Addr struct {
	VM   string
	CID  uint32
	Port uint32
}

// Network returns "vsock".
func (a Addr) Network() string { return "vsock" }

// String gives the form that ChromeOS's gRPC uses, vsock:CID:PORT.
func (a Addr) String() string {
	return "vsock:" + utoa(a.CID) + ":" + utoa(a.Port)
}

// PeerOf returns the identity of the far end of a stream made by this
// package. The identity comes from the endpoint on which the stream was made
// and never from what the peer says.
func PeerOf(c net.Conn) (Addr, bool) {
	a, ok := c.RemoteAddr().(Addr)
	return a, ok
}
