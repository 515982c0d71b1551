package core

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func addAddress(t *testing.T, link, address string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatalf("%s on %s: %v", address, link, err)
	}
}

// connection is both ends of a TCP connection between two addresses of this
// machine.
func connection(t *testing.T, from, to string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	// A new interface takes the kernel a moment.
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		client, err = d.DialContext(t.Context(), "tcp", l.Addr().String())
		if !errors.Is(err, unix.ENETUNREACH) {
			break
		}
		<-retry.C
	}
	if err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func alive(client, server net.Conn) bool {
	if _, err := client.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(server, make([]byte, 1))
	return err == nil
}

func TestHostNetworkChanged(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	if err := errors.Join(LoopbackUp(), HostNetworkChanged(), ResetIPv6()); err != nil {
		t.Fatalf("without an interface: %v", err)
	}
	attrs := netlink.NewLinkAttrs()
	// The kernel makes the peer first, and the first is the one that counts.
	attrs.Name = "peer"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0"}); err != nil {
		t.Fatalf("no veth here: %v", err)
	}
	for _, name := range []string{"peer", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	addAddress(t, "eth0", "100.115.128.2/29")
	addAddress(t, "eth0", "100.115.128.18/29")
	addAddress(t, "eth0", "2001:db8::2/64")
	addAddress(t, "lo", "192.0.2.1/32")
	addAddress(t, "lo", "192.0.2.9/32")
	addAddress(t, "lo", "2001:db8:1::1/128")
	addAddress(t, "lo", "100.115.128.3/32")

	type pair struct{ from, to string }
	stays := []pair{
		{"127.0.0.1", "127.0.0.1"},
		{"::1", "::1"},
		{"192.0.2.9", "192.0.2.1"},         // between other interfaces
		{"100.115.128.2", "100.115.128.3"}, // a neighbour
	}
	goes := []pair{
		{"100.115.128.2", "192.0.2.1"},
		{"2001:db8::2", "2001:db8:1::1"},
		{"100.115.128.18", "192.0.2.1"}, // from an address that goes away
	}
	open := map[pair][2]net.Conn{}
	for _, p := range append(stays, goes...) {
		c, s := connection(t, p.from, p.to)
		open[p] = [2]net.Conn{c, s}
	}
	if err := netlink.AddrDel(mustLink(t, "eth0"), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(100, 115, 128, 18).To4(), Mask: net.CIDRMask(29, 32)}}); err != nil {
		t.Fatal(err)
	}
	datagrams := func(from, to string) net.Conn {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
		c, err := d.DialContext(t.Context(), "udp", netip.AddrPortFrom(netip.MustParseAddr(to), 443).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	far, near := datagrams("100.115.128.2", "192.0.2.1"), datagrams("100.115.128.2", "100.115.128.4")
	bound, err := net.ListenPacket("udp", "100.115.128.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer bound.Close()

	// A program that ends on SIGHUP, under the resolver's name and another.
	named := func(name string) *exec.Cmd {
		sleep, err := os.ReadFile("/bin/sleep")
		path := t.TempDir() + "/" + name
		if err == nil {
			err = os.WriteFile(path, sleep, 0o755)
		}
		cmd := exec.Command(path, "1000")
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	resolver, other := named("dnsmasq"), named("dnsmasq2")

	if err := HostNetworkChanged(); err != nil {
		t.Fatal(err)
	}
	for _, p := range stays {
		if !alive(open[p][0], open[p][1]) {
			t.Errorf("the connection %v was ended", p)
		}
	}
	for _, p := range goes {
		if _, err := open[p][0].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("the connection %v: %v", p, err)
		}
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("datagrams to afar: %v", err)
	}
	for _, c := range []interface{ SetReadDeadline(time.Time) error }{near, bound.(*net.UDPConn)} {
		c.SetReadDeadline(time.Unix(1, 0))
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("datagrams to a neighbour: %v", err)
	}
	if _, _, err := bound.ReadFrom(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a socket without a peer: %v", err)
	}
	if err := resolver.Wait(); err == nil || !strings.Contains(err.Error(), "hangup") {
		t.Errorf("dnsmasq: %v", err)
	}
	if err := other.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("another program: %v", err)
	}
	if got := ipv6Of(t, "eth0"); strings.Contains(got, "2001:db8::2") || !strings.Contains(got, "fe80:") {
		t.Errorf("IPv6 addresses afterwards: %s", got)
	}

	// The older call resets addresses only; what is switched off stays off.
	c, s := connection(t, "100.115.128.2", "192.0.2.1")
	addAddress(t, "eth0", "2001:db8::2/64")
	if err := ResetIPv6(); err != nil {
		t.Fatal(err)
	}
	if got := ipv6Of(t, "eth0"); strings.Contains(got, "2001:db8::2") || !alive(c, s) {
		t.Errorf("after ResetIPv6: %s", got)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := ResetIPv6(); err != nil {
		t.Fatal(err)
	}
	if got := ipv6Of(t, "eth0"); got != "" {
		t.Errorf("with IPv6 switched off: %s", got)
	}
}

func ipv6Of(t *testing.T, link string) string {
	t.Helper()
	addrs, err := netlink.AddrList(mustLink(t, link), unix.AF_INET6)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, a := range addrs {
		b.WriteString(a.IP.String() + " ")
	}
	return b.String()
}
