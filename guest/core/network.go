package core

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoEthernet says that the machine has no network interface but loopback.
var ErrNoEthernet = errors.New("this VM has no ethernet interface: it was started without a network, or its kernel has no driver for it")

// IPv4 is the address of one interface.
type IPv4 struct {
	// Prefix is the address together with the length of its network.
	Prefix netip.Prefix
	// Gateway is the way out; the zero Addr is none.
	Gateway netip.Addr
}

// Validate tells whether an interface can be set up so.
func (c IPv4) Validate() error {
	if !c.Prefix.IsValid() || !c.Prefix.Addr().Is4() {
		return fmt.Errorf("%s is not an IPv4 address with the length of its network", c.Prefix)
	}
	if a := c.Prefix.Addr(); a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return fmt.Errorf("%s cannot be the address of an interface", a)
	}
	if c.Prefix.Bits() == 0 {
		return fmt.Errorf("the network of %s is empty", c.Prefix.Addr())
	}
	if !c.Gateway.IsValid() {
		return nil
	}
	if !c.Prefix.Contains(c.Gateway) || c.Gateway == c.Prefix.Addr() {
		return fmt.Errorf("the gateway %s is not another host of the network %s", c.Gateway, c.Prefix.Masked())
	}
	return nil
}

// LoopbackUp brings the loopback interface up.
func LoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("cannot find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("cannot bring up the loopback interface: %w", err)
	}
	return nil
}

// ConfigureEthernet gives the machine's first ethernet interface this IPv4
// address and no other, and this default route or none. Doing it again with
// the same values changes nothing, and breaks no connection.
func ConfigureEthernet(c IPv4) error {
	link, err := firstEthernet()
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	if err := setAddress(link, c.Prefix); err != nil {
		return fmt.Errorf("cannot give %s the address %s: %w", name, c.Prefix, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring up %s: %w", name, err)
	}
	if err := setDefaultRoute(link, c.Gateway); err != nil {
		return fmt.Errorf("cannot set the default route of %s to %s: %w", name, c.Gateway, err)
	}
	return nil
}

// firstEthernet prefers real devices to bridges and their like, and then the
// oldest.
func firstEthernet() (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("cannot list the network interfaces: %w", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool {
		return l.Attrs().EncapType != "ether" || l.Attrs().Flags&net.FlagLoopback != 0
	})
	if len(links) == 0 {
		return nil, ErrNoEthernet
	}
	return slices.MinFunc(links, func(a, b netlink.Link) int {
		return rank(a) - rank(b)
	}), nil
}

func rank(l netlink.Link) int {
	const virtual = 1 << 20
	if l.Type() != "device" {
		return virtual + l.Attrs().Index
	}
	return l.Attrs().Index
}

func setAddress(link netlink.Link, want netip.Prefix) error {
	wanted := &net.IPNet{IP: want.Addr().AsSlice(), Mask: net.CIDRMask(want.Bits(), 32)}
	have, err := netlink.AddrList(link, unix.AF_INET)
	if err != nil {
		return err
	}
	for _, a := range have {
		if a.IPNet.String() == wanted.String() {
			continue
		}
		// With a primary address its secondaries may have gone already.
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	return netlink.AddrReplace(link, &netlink.Addr{IPNet: wanted})
}

func setDefaultRoute(link netlink.Link, gateway netip.Addr) error {
	have, err := netlink.RouteList(link, unix.AF_INET)
	if err != nil {
		return err
	}
	for _, r := range have {
		if !isDefault(r) || (gateway.IsValid() && r.Gw.Equal(gateway.AsSlice())) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	if !gateway.IsValid() {
		return nil
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Gw:        gateway.AsSlice(),
	})
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}
