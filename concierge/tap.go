package concierge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/auberge-vm/auberge/concierge/host"
	"github.com/auberge-vm/auberge/vmm"
)

// A Tap says what a VM's TAP network is to be.
type Tap struct {
	ID string
	// Gateway is the host's address in the VM's network, with its size.
	Gateway netip.Prefix
	Guest   netip.Addr
	// Restricted leaves the guest no way out.
	Restricted bool
}

// Networks makes TAP interfaces on the host and the rules of the firewall that
// belong to them, for which this service has no rights itself.
type Networks interface {
	// AddTap returns the interface, which is there for as long as somebody has
	// the descriptor.
	AddTap(ctx context.Context, t Tap) (*os.File, error)
	// RemoveTap takes away what is left of it, if anything is.
	RemoveTap(ctx context.Context, id string) error
}

// tapTimeout bounds what taking away a network may cost the end of a VM.
const tapTimeout = 10 * time.Second

// network decides what network the VM gets.
func (s *Service) network(v *vm, mode NetworkMode, p *plan) error {
	if mode == NetworkNone {
		s.mu.Lock()
		s.nets.release(v.net)
		v.mu.Lock()
		v.net = vmm.Network{}
		v.mu.Unlock()
		s.mu.Unlock()
		return nil
	}
	n := v.net
	n.Restricted = mode == NetworkRestricted
	switch {
	case mode == NetworkTap && s.cfg.Networks == nil:
		return errors.New(`the network "tap" is made by auberge-helper, and this service runs without (--helper): choose another with ConfigureVm`)
	case mode == NetworkUser && s.cfg.Launcher.Units != nil:
		return errors.New(`the network "user" is a part of the VM's own processes, which reach nothing when they run in a unit of systemd: choose "tap" with ConfigureVm`)
	case mode == NetworkTap || n.Restricted && s.cfg.Network == NetworkTap:
		// The file itself comes when all else is in order.
		none := vmm.NoFile
		n.Tap = &none
	}
	p.spec.Network = &n
	return nil
}

// addTap makes the VM's TAP, where it is to have one.
func (s *Service) addTap(ctx context.Context, v *vm, p *plan) error {
	n := p.spec.Network
	if n == nil || n.Tap == nil {
		return nil
	}
	// Once it is asked for, it has to be taken away.
	v.mu.Lock()
	v.net.Tap = n.Tap
	v.mu.Unlock()
	f, err := s.cfg.Networks.AddTap(ctx, Tap{ID: v.id, Gateway: netip.PrefixFrom(n.Gateway, n.Subnet.Bits()), Guest: n.Guest, Restricted: n.Restricted})
	if err != nil {
		return fmt.Errorf("make the VM's network: %w", err)
	}
	file := p.add(f)
	n.Tap = &file
	return nil
}

// removeTap takes away what is left of the VM's network. The interface has
// gone with the VM's last process, unless that has seen to it.
func (s *Service) removeTap(v *vm) {
	v.mu.Lock()
	has := v.net.Tap != nil
	v.mu.Unlock()
	if !has {
		return
	}
	if s.cfg.Networks == nil {
		v.log.Warn("this service runs without auberge-helper now, which made the VM's network and should look whether something is left of it")
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.quit), tapTimeout)
	defer cancel()
	if err := s.cfg.Networks.RemoveTap(ctx, v.id); err != nil {
		v.log.Warn("see to it that nothing is left of the VM's network", "err", err)
	}
}

// maxNameServers is how many a resolver asks.
const maxNameServers = 3

// nameServers are those that a guest is told. In a user-mode network that is an
// address of the VM's own network, behind which is the host's; in a TAP network
// those that the host asks itself, as far as the guest reaches them.
func nameServers(n *vmm.Network, dns host.DNS) (servers []string, err error) {
	if n.Tap == nil {
		return []string{n.NameServer.String()}, nil
	}
	if n.Restricted {
		return nil, nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, s := range dns.NameServers {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() && a.IsGlobalUnicast() && !among(own, a) && len(servers) < maxNameServers {
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		err = fmt.Errorf("of the host's name servers %q none is one that guests with a TAP network reach: an IPv4 address that is not this host's own (--resolv-conf can name a file with others)", dns.NameServers)
	}
	return servers, err
}

func among(addrs []net.Addr, a netip.Addr) bool {
	for _, o := range addrs {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr() == a {
			return true
		}
	}
	return false
}
