package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// openTap makes an interface that is there for as long as its descriptor. One
// of the name that is there already is never taken over.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (is the kernel's module tun there, and may this process use the device?)", tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the interface %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}

// setUp gives the interface its address and its alias. It stays down.
func setUp(s Spec) (netlink.Link, error) {
	link, err := netlink.LinkByName(s.name())
	if err != nil {
		return nil, fmt.Errorf("find the interface %s: %w", s.name(), err)
	}
	if err := netlink.LinkSetAlias(link, s.alias()); err != nil {
		return nil, fmt.Errorf("set the alias of %s: %w", s.name(), err)
	}
	if err := setSysctls(s.name()); err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: s.Gateway.Addr().AsSlice(), Mask: net.CIDRMask(s.Gateway.Bits(), 32)}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return nil, fmt.Errorf("give %s the address %v: %w", s.name(), s.Gateway, err)
	}
	return link, nil
}

// perInterface are settings of one of our interfaces. The host answers for no
// address but the gateway's and only to the guest's network, or a guest could
// look for the host's addresses and fill its table of neighbours.
var perInterface = []struct{ path, value string }{
	{"ipv6/conf/%s/disable_ipv6", "1"},
	{"ipv4/conf/%s/arp_ignore", "2"},
	{"ipv4/conf/%s/rp_filter", "1"},
	{"ipv4/conf/%s/accept_redirects", "0"},
	{"ipv4/conf/%s/send_redirects", "0"},
}

func setSysctls(name string) error {
	for _, s := range perInterface {
		path := "/proc/sys/net/" + fmt.Sprintf(s.path, name)
		err := writeSysctl(path, s.value)
		if err != nil && strings.HasPrefix(s.path, "ipv6/") && errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}

// members are the interfaces of ours.
func members() ([]member, error) {
	links, err := again(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var all []member
	for _, l := range links {
		if m, ok := memberOf(l.Attrs().Name, l.Attrs().Alias); ok && l.Type() == tunType {
			all = append(all, m)
		}
	}
	return all, nil
}

const tunType = "tuntap"

// nearDefault is the size from which a route is taken for a default one, which
// some programs lay in two or more parts.
const nearDefault = 7

// conflict refuses a network that the host knows already.
func conflict(s Spec) error {
	want := s.Gateway.Masked()
	routes, err := again(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if !ok || ones <= nearDefault {
			continue
		}
		if dst := netip.PrefixFrom(ip, ones).Masked(); dst.Overlaps(want) {
			return fmt.Errorf("the host has a route to %v%s, which overlaps %v: give VMs other addresses with --address-pool",
				dst, by(r.LinkIndex), want)
		}
	}
	return nil
}

func by(link int) string {
	if l, err := netlink.LinkByIndex(link); err == nil {
		return " by " + l.Attrs().Name
	}
	return ""
}

// again repeats a listing that a change has interrupted.
func again[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// removeLink deletes an interface of ours, if it is there: a descriptor that
// somebody has left does not keep it.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", name, err)
	}
	if _, ours := memberOf(name, link.Attrs().Alias); !ours || link.Type() != tunType {
		return fmt.Errorf("%w: the interface %s is none of ours", ErrRefused, name)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}
