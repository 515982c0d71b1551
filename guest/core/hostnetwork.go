package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// HostNetworkChanged drops what the first ethernet interface remembers of the
// network in which the host was: connections over it, which the host's new
// network does not know, names that a resolver has kept, and IPv6 addresses.
// A machine without such an interface has nothing to drop.
func HostNetworkChanged() error {
	link, err := firstEthernet()
	if err != nil && !errors.Is(err, ErrNoEthernet) {
		return err
	}
	var errs []error
	if err == nil {
		_, destroyErr := destroyStaleSockets(link)
		errs = append(errs, destroyErr, restartIPv6(link.Attrs().Name))
	}
	// Last, so that what it asks now goes out by the new network.
	errs = append(errs, hangUp("dnsmasq"))
	return errors.Join(errs...)
}

// ResetIPv6 makes the first ethernet interface look for its IPv6 addresses
// anew.
func ResetIPv6() error {
	link, err := firstEthernet()
	if errors.Is(err, ErrNoEthernet) {
		return nil
	}
	if err != nil {
		return err
	}
	return restartIPv6(link.Attrs().Name)
}

// restartIPv6 switches IPv6 off and on: the interface loses its addresses and
// routes, and solicits routers. Where IPv6 is switched off it stays so.
func restartIPv6(name string) error {
	path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	now, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	if err == nil && strings.TrimSpace(string(now)) != "0" {
		return nil
	}
	for _, value := range []string{"1", "0"} {
		if err == nil {
			err = os.WriteFile(path, []byte(value), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot restart IPv6 on %s: %w", name, err)
	}
	return nil
}

// destroyStaleSockets ends the connections that went out over a link, or from
// an address that the machine no longer has, and tells how many there were.
// Their owners see ECONNABORTED at once instead of a long silence. Loopback,
// sockets without a peer and hosts of the link's own network are left alone.
func destroyStaleSockets(link netlink.Link) (int, error) {
	on, elsewhere, err := ownAddresses(link)
	if err != nil {
		return 0, err
	}
	destroyed := 0
	var errs []error
	for _, kind := range []struct {
		protocol uint8
		list     func(family uint8) ([]*netlink.Socket, error)
	}{{unix.IPPROTO_TCP, netlink.SocketDiagTCP}, {unix.IPPROTO_UDP, netlink.SocketDiagUDP}} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := kind.list(family)
			if errors.Is(err, unix.ENOENT) {
				continue // a kernel that cannot list them
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("cannot list the connections: %w", err))
				continue
			}
			for _, s := range sockets {
				if !isStale(s, on, elsewhere) {
					continue
				}
				switch err := destroySocket(kind.protocol, s); {
				case err == nil:
					destroyed++
				case errors.Is(err, unix.EOPNOTSUPP):
					// A kernel without CONFIG_INET_DIAG_DESTROY: nothing can be done.
					return destroyed, errors.Join(errs...)
				case !errors.Is(err, unix.ENOENT): // else it is gone already
					errs = append(errs, fmt.Errorf("cannot end the connection %s -> %s: %w", s.ID.Source, s.ID.Destination, err))
				}
			}
			errs = errs[:min(len(errs), 4)]
		}
	}
	return destroyed, errors.Join(errs...)
}

// ownAddresses returns the networks of a link and the addresses of all others.
func ownAddresses(link netlink.Link) (on []netip.Prefix, elsewhere map[netip.Addr]bool, err error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the addresses: %w", err)
	}
	elsewhere = make(map[netip.Addr]bool)
	for _, a := range all {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		ones, _ := a.Mask.Size()
		if a.LinkIndex == link.Attrs().Index {
			on = append(on, netip.PrefixFrom(addr, ones))
		} else {
			elsewhere[addr] = true
		}
	}
	return on, elsewhere, nil
}

func isStale(s *netlink.Socket, on []netip.Prefix, elsewhere map[netip.Addr]bool) bool {
	local, ok := netip.AddrFromSlice(s.ID.Source)
	remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
	local, remote = local.Unmap(), remote.Unmap()
	if !ok || !ok2 || s.State == netlink.TCP_LISTEN || s.State == netlink.TCP_TIME_WAIT ||
		local.IsUnspecified() || local.IsLoopback() || remote.IsUnspecified() || remote.IsLoopback() || elsewhere[local] {
		return false
	}
	for _, p := range on {
		if p.Addr() != remote && p.Contains(remote) {
			return false
		}
	}
	return true
}

// A destroyRequest is inet_diag_req_v2 (sock_diag(7)). netlink's own call
// knows IPv4 only and goes by addresses, not by the socket's cookie.
type destroyRequest struct {
	protocol uint8
	s        *netlink.Socket
}

const sizeofDestroyRequest = 56

func (destroyRequest) Len() int { return sizeofDestroyRequest }

func (r destroyRequest) Serialize() []byte {
	b := make([]byte, sizeofDestroyRequest)
	id := r.s.ID
	b[0], b[1] = r.s.Family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // any state
	binary.BigEndian.PutUint16(b[8:], id.SourcePort)
	binary.BigEndian.PutUint16(b[10:], id.DestinationPort)
	copy(b[12:28], rawIP(r.s.Family, id.Source))
	copy(b[28:44], rawIP(r.s.Family, id.Destination))
	binary.NativeEndian.PutUint32(b[44:], id.Interface)
	binary.NativeEndian.PutUint32(b[48:], id.Cookie[0])
	binary.NativeEndian.PutUint32(b[52:], id.Cookie[1])
	return b
}

func rawIP(family uint8, ip net.IP) net.IP {
	if family == unix.AF_INET {
		return ip.To4()
	}
	return ip.To16()
}

func destroySocket(protocol uint8, s *netlink.Socket) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(destroyRequest{protocol, s})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// hangUp sends SIGHUP to every process of this name, on which it drops what
// it has cached.
func hangUp(name string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("cannot look for %s: %w", name, err)
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		comm, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if err := unix.Kill(pid, unix.SIGHUP); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("cannot tell %s (process %d): %w", name, pid, err))
		}
	}
	return errors.Join(errs...)
}
