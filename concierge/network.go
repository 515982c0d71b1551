package concierge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// A NetworkMode says what a VM's network reaches.
type NetworkMode string

const (
	NetworkNone       NetworkMode = "none"       // no network interface
	NetworkRestricted NetworkMode = "restricted" // an address, and no way out
	NetworkUser       NetworkMode = "user"       // out by way of a process of the VM's
	NetworkTap        NetworkMode = "tap"        // out by way of the host's own network
)

// Valid says whether the mode is one of the above.
func (m NetworkMode) Valid() bool {
	return m == NetworkNone || m == NetworkRestricted || m == NetworkUser || m == NetworkTap
}

// subnetBits is the size of one VM's network: gateway, guest and name server
// do not fit a /30.
const subnetBits = 29

// A netPool hands out /29 networks. The caller holds the service's lock.
type netPool struct {
	base uint32
	used map[uint32]bool // by number of the /29
	size uint32
	next uint32
}

func newNetPool(p netip.Prefix) (*netPool, error) {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() > subnetBits {
		return nil, fmt.Errorf("address pool %q must be an IPv4 network of /%d or larger", p, subnetBits)
	}
	b := p.Masked().Addr().As4()
	return &netPool{base: binary.BigEndian.Uint32(b[:]), used: map[uint32]bool{}, size: 1 << (subnetBits - p.Bits())}, nil
}

// take returns a free network. Numbers are used in turn, so that a network
// rests before somebody else gets it.
func (p *netPool) take() (vmm.Network, error) {
	for range p.size {
		n := p.next
		p.next = (p.next + 1) % p.size
		if !p.used[n] {
			p.used[n] = true
			return p.network(n), nil
		}
	}
	return vmm.Network{}, errors.New("all networks of the address pool are in use")
}

func (p *netPool) network(n uint32) vmm.Network {
	at := func(i uint32) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], p.base+n<<(32-subnetBits)+i)
		return netip.AddrFrom4(b)
	}
	return vmm.Network{
		Subnet:  netip.PrefixFrom(at(0), subnetBits),
		Gateway: at(1), Guest: at(2), NameServer: at(3),
	}
}

func (p *netPool) number(n vmm.Network) (uint32, bool) {
	if !n.Subnet.Addr().Is4() || n.Subnet.Bits() != subnetBits {
		return 0, false
	}
	b := n.Subnet.Addr().As4()
	i := (binary.BigEndian.Uint32(b[:]) - p.base) >> (32 - subnetBits)
	return i, i < p.size
}

// claim marks the network of a VM found running.
func (p *netPool) claim(n vmm.Network) {
	if i, ok := p.number(n); ok {
		p.used[i] = true
	}
}

func (p *netPool) release(n vmm.Network) {
	if i, ok := p.number(n); ok {
		delete(p.used, i)
	}
}

// takeSubnet returns a free network for a VM's containers, twice the size of
// the VM's own. They come from the other end of the pool, so that few of them
// stand between VMs' networks.
func (p *netPool) takeSubnet() (netip.Prefix, error) {
	for n := p.size - p.size%2; n >= 2; n -= 2 {
		if !p.used[n-1] && !p.used[n-2] {
			p.used[n-1], p.used[n-2] = true, true
			return netip.PrefixFrom(p.network(n-2).Subnet.Addr(), containerBits), nil
		}
	}
	return netip.Prefix{}, errors.New("all networks of the address pool are in use")
}

// containerBits is the size of the network of one VM's containers, as on
// ChromeOS.
const containerBits = subnetBits - 1

// halves are the networks of which one for containers consists.
func (p *netPool) halves(subnet netip.Prefix) (n uint32, ok bool) {
	if subnet.Bits() != containerBits {
		return 0, false
	}
	n, ok = p.number(vmm.Network{Subnet: netip.PrefixFrom(subnet.Addr(), subnetBits)})
	return n, ok && n+1 < p.size
}

func (p *netPool) claimSubnet(subnet netip.Prefix) {
	if n, ok := p.halves(subnet); ok {
		p.used[n], p.used[n+1] = true, true
	}
}

func (p *netPool) releaseSubnet(subnet netip.Prefix) {
	if n, ok := p.halves(subnet); ok {
		delete(p.used, n)
		delete(p.used, n+1)
	}
}

// kernelPorts are the host's AF_VSOCK listeners of kernel mode, one per port
// for all VMs.
type kernelPorts struct {
	byPort map[uint32]*vsock.Demux
}

func (s *Service) listenKernelPorts(ctx context.Context) (*kernelPorts, error) {
	// Opening the device loads the module, without which there is no such CID
	// as the host's.
	f, err := s.reserveCID(ctx, vsock.Addr{CID: s.nextCID})
	switch {
	case err == nil:
		f.Close()
	case !errors.Is(err, unix.EADDRINUSE):
		return nil, err
	}
	k := &kernelPorts{byPort: map[uint32]*vsock.Demux{}}
	for _, port := range vsock.HostPorts {
		d, err := s.listenKernel(port)
		if err != nil {
			k.close()
			return nil, err
		}
		k.byPort[port] = d
	}
	return k, nil
}

func (s *Service) listenKernel(port uint32) (*vsock.Demux, error) {
	open := s.cfg.KernelSocket
	if open == nil {
		open = vsock.KernelSocket
	}
	f, err := open(port)
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w (another program of this host has the port, and hears our guests there)", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return vsock.DemuxFile(f, port)
}

func (k *kernelPorts) close() {
	for _, d := range k.byPort {
		d.Close()
	}
}

// endpoint returns where the guest's streams to a host port arrive.
func (s *Service) endpoint(m *vmm.Machine, port uint32) (net.Listener, error) {
	if m.Spec.Vsock.Mode == vsock.ModeKernel {
		if s.kernelPorts == nil {
			return nil, errors.New("the VM was started with kernel vsock, for which the service needs --vsock kernel")
		}
		return s.kernelPorts.byPort[port].Guest(vsock.Addr{VM: m.Spec.ID, CID: m.Spec.Vsock.CID})
	}
	if l := m.Listener(port); l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("the VM has no endpoint for port %d", port)
}
