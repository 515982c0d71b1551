package core

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestIPv4Validate(t *testing.T) {
	tests := map[string]struct {
		prefix, gateway string
		ok              bool
	}{
		"an address of a /29":                {"100.115.128.2/29", "100.115.128.1", true},
		"no gateway":                         {"100.115.128.2/29", "", true},
		"no address":                         {"0.0.0.0/29", "", false},
		"an empty network":                   {"100.115.128.2/0", "", false},
		"loopback":                           {"127.0.0.2/8", "", false},
		"multicast":                          {"224.0.0.1/24", "", false},
		"a gateway elsewhere":                {"100.115.128.2/29", "100.115.128.9", false},
		"a gateway that is the guest itself": {"100.115.128.2/29", "100.115.128.2", false},
		"IPv6":                               {"2001:db8::1/64", "", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := IPv4{Prefix: netip.MustParsePrefix(tt.prefix)}
			if tt.gateway != "" {
				c.Gateway = netip.MustParseAddr(tt.gateway)
			}
			if err := c.Validate(); (err == nil) != tt.ok {
				t.Errorf("%+v: %v, want ok %v", c, err, tt.ok)
			}
		})
	}
	if err := (IPv4{}).Validate(); err == nil {
		t.Error("nothing at all is accepted")
	}
}

func TestConfigureEthernet(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNET) {
		return
	}
	config := func(prefix, gateway string) IPv4 {
		c := IPv4{Prefix: netip.MustParsePrefix(prefix)}
		if gateway != "" {
			c.Gateway = netip.MustParseAddr(gateway)
		}
		return c
	}
	first := config("100.115.128.2/29", "100.115.128.1")
	if err := ConfigureEthernet(first); !errors.Is(err, ErrNoEthernet) {
		t.Fatalf("without an interface: %v", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("no veth here: %v", err)
	}
	// The pair's older half is the one to be found.
	name := "peer"
	if link, err := netlink.LinkByName("eth0"); err == nil && link.Attrs().Index < mustLink(t, "peer").Attrs().Index {
		name = "eth0"
	}

	check := func(step string, addrs, routes []string) {
		t.Helper()
		link := mustLink(t, name)
		if link.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("%s: %s is down", step, name)
		}
		if got := addresses(t, link); !slices.Equal(got, addrs) {
			t.Errorf("%s: addresses %v, want %v", step, got, addrs)
		}
		if got := gateways(t, link); !slices.Equal(got, routes) {
			t.Errorf("%s: default routes %v, want %v", step, got, routes)
		}
	}
	for _, step := range []string{"the first time", "again"} {
		if err := ConfigureEthernet(first); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		check(step, []string{"100.115.128.2/29"}, []string{"100.115.128.1"})
	}

	// An address and a route that somebody added go.
	stray, _ := netlink.ParseAddr("100.115.128.4/29")
	if err := netlink.AddrAdd(mustLink(t, name), stray); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: mustLink(t, name).Attrs().Index, Gw: net.IPv4(100, 115, 128, 5), Priority: 50}); err != nil {
		t.Fatal(err)
	}
	if err := ConfigureEthernet(first); err != nil {
		t.Fatal(err)
	}
	check("after strays", []string{"100.115.128.2/29"}, []string{"100.115.128.1"})

	// From a secondary of the old network to the primary, and elsewhere.
	for _, c := range []IPv4{config("100.115.128.4/29", "100.115.128.1"), config("10.0.2.15/24", "10.0.2.2")} {
		if err := ConfigureEthernet(c); err != nil {
			t.Fatal(err)
		}
		check("moved to "+c.Prefix.String(), []string{c.Prefix.String()}, []string{c.Gateway.String()})
	}
	if err := ConfigureEthernet(config("10.0.2.15/24", "")); err != nil {
		t.Fatal(err)
	}
	check("without a gateway", []string{"10.0.2.15/24"}, nil)
}

func TestLoopbackUp(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNET) {
		return
	}
	if err := LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func addresses(t *testing.T, link netlink.Link) []string {
	t.Helper()
	list, err := netlink.AddrList(link, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, a := range list {
		all = append(all, a.IPNet.String())
	}
	return all
}

func gateways(t *testing.T, link netlink.Link) []string {
	t.Helper()
	list, err := netlink.RouteList(link, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range list {
		if isDefault(r) {
			all = append(all, r.Gw.String())
		}
	}
	return all
}
