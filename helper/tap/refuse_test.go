package tap_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/auberge-vm/auberge/helper/tap"
)

// What is no network of a VM is refused before anything is changed.
func TestRefused(t *testing.T) {
	n := networks(t)
	f, err := n.Add(t.Context(), spec(1))
	check(t, err)
	defer f.Close()
	before := ruleset(t)
	for name, change := range map[string]func(*tap.Spec){
		"no id":                  func(s *tap.Spec) { s.ID = "" },
		"a long id":              func(s *tap.Spec) { s.ID = "abcdefghijkl" },
		"an id with a dot":       func(s *tap.Spec) { s.ID = "../vm" },
		"an id with a space":     func(s *tap.Spec) { s.ID = "a b" },
		"an id with a NUL":       func(s *tap.Spec) { s.ID = "a\x00b" },
		"an id with a pattern":   func(s *tap.Spec) { s.ID = "vm%d" },
		"an id in capitals":      func(s *tap.Spec) { s.ID = "VM" },
		"a wide network":         func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.128.1/17") },
		"no network":             func(s *tap.Spec) { s.Gateway = netip.Prefix{} },
		"a point":                func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.128.17/32") },
		"a network elsewhere":    func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("192.168.1.1/29") },
		"the world":              func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("0.0.0.0/0") },
		"an IPv6 network":        func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("fd00::1/64") },
		"a mapped network":       func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("::ffff:100.115.128.17/125") },
		"a gateway without host": func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.128.16/29") },
		"a gateway for all":      func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.128.23/29") },
		"no guest":               func(s *tap.Spec) { s.Guest = netip.Addr{} },
		"a guest elsewhere":      func(s *tap.Spec) { s.Guest = netip.MustParseAddr("100.115.128.26") },
		"the gateway as guest":   func(s *tap.Spec) { s.Guest = s.Gateway.Addr() },
		"all as guest":           func(s *tap.Spec) { s.Guest = netip.MustParseAddr("100.115.128.23") },
		"the network as guest":   func(s *tap.Spec) { s.Guest = netip.MustParseAddr("100.115.128.16") },
		"an IPv6 guest":          func(s *tap.Spec) { s.Guest = netip.MustParseAddr("fd00::2") },
		"a mapped guest":         func(s *tap.Spec) { s.Guest = netip.MustParseAddr("::ffff:100.115.128.18") },
		"a guest with a zone":    func(s *tap.Spec) { s.Guest = netip.MustParseAddr("fe80::1%lo") },
		"just beyond the pool": func(s *tap.Spec) {
			s.Gateway = netip.MustParsePrefix("100.116.0.1/29")
			s.Guest = netip.MustParseAddr("100.116.0.2")
		},
		"just before the pool":    func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.127.249/29") },
		"a network as the pool's": func(s *tap.Spec) { s.Gateway = netip.MustParsePrefix("100.115.128.1/16") },
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(2)
			change(&s)
			f, err := n.Add(t.Context(), s)
			if err == nil {
				f.Close()
			}
			if !errors.Is(err, tap.ErrRefused) {
				t.Errorf("%+v: %v", s, err)
			}
		})
	}
	for _, id := range []string{"", "lo", "wan0", "../..", "abcdefghijkl"} {
		if err := n.Remove(t.Context(), id); err != nil && !errors.Is(err, tap.ErrRefused) {
			t.Errorf("remove %q: %v", id, err)
		}
	}
	if r, i := ruleset(t), interfaces(t); r != before || len(i) != 1 {
		t.Errorf("afterwards there are %v and %s", i, r)
	}
}

// A network that the host knows already is refused, and an interface that is
// there is nobody's to take over or remove.
func TestConflicts(t *testing.T) {
	n := networks(t)
	f, err := n.Add(t.Context(), spec(1))
	check(t, err)
	defer f.Close()
	dummy := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: tap.Prefix + "vm5"}, PeerName: "other0"}
	check(t, netlink.LinkAdd(dummy))
	t.Cleanup(func() { netlink.LinkDel(dummy) })
	up(t, "other0", "100.115.130.5/32")
	up(t, tap.Prefix+"vm5")
	_, dst, _ := net.ParseCIDR("100.115.200.0/22")
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index(t, "other0"), Dst: dst, Table: 52}))

	left := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap.Prefix + "vm6"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	check(t, netlink.LinkAdd(left))
	t.Cleanup(func() { netlink.LinkDel(left) })

	at := func(id, gateway string) tap.Spec {
		p := netip.MustParsePrefix(gateway)
		return tap.Spec{ID: id, Gateway: p, Guest: p.Addr().Next()}
	}
	for name, tt := range map[string]struct {
		spec tap.Spec
		want string
	}{
		"another VM's network":             {at("vm2", "100.115.128.9/29"), "by aub-vm1"},
		"one around another VM's":          {at("vm2", "100.115.128.1/28"), "by aub-vm1"},
		"one within another VM's":          {at("vm2", "100.115.128.9/30"), "by aub-vm1"},
		"the same VM once more":            {spec(1), "by aub-vm1"},
		"the same id elsewhere":            {at("vm1", "100.115.129.1/29"), "make the interface aub-vm1"},
		"an address of the host":           {at("vm2", "100.115.130.1/29"), "100.115.130.5/32 by other0"},
		"a route in another table":         {at("vm2", "100.115.201.1/29"), "100.115.200.0/22 by other0"},
		"the name of an interface of else": {at("vm5", "100.115.131.1/29"), "make the interface aub-vm5"},
		"a TAP that somebody has left":     {at("vm6", "100.115.131.1/29"), "make the interface aub-vm6"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := n.Add(t.Context(), tt.spec)
			if err == nil {
				f.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if err := n.Remove(t.Context(), "vm5"); !errors.Is(err, tap.ErrRefused) {
		t.Errorf("remove an interface that is none of ours: %v", err)
	}
	if r := ruleset(t); !strings.Contains(r, "aub-vm1") || strings.Contains(r, "aub-vm2") || strings.Contains(r, "aub-vm5") {
		t.Errorf("the rules are not those of VM 1: %s", r)
	}
}

// Whether the host forwards packets is the administrator's, who may keep it.
func TestForwarding(t *testing.T) {
	const sysctl = "/proc/sys/net/ipv4/ip_forward"
	set := func(v string) { check(t, os.WriteFile(sysctl, []byte(v), 0)) }
	is := func() string {
		b, err := os.ReadFile(sysctl)
		check(t, err)
		return strings.TrimSpace(string(b))
	}
	set("0")
	keep := networks(t, func(c *tap.Config) { c.KeepForwarding = true })
	if _, err := keep.Add(t.Context(), spec(1)); err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Errorf("without forwarding: %v", err)
	}
	restricted := spec(1)
	restricted.Restricted = true
	f, err := keep.Add(t.Context(), restricted)
	check(t, err)
	f.Close()
	if is() != "0" {
		t.Error("forwarding was switched on")
	}
	f, err = networks(t).Add(t.Context(), spec(2))
	check(t, err)
	f.Close()
	if is() != "1" {
		t.Error("forwarding was not switched on")
	}
	f, err = keep.Add(t.Context(), spec(3))
	check(t, err)
	f.Close()
	check(t, keep.Remove(t.Context(), "vm3"))
}

// A caller that has gone away does not wait for the others.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller has gone")
	cancel(why)
	n := networks(t)
	release := n.Block()
	defer release()
	if _, err := n.Add(ctx, spec(1)); !errors.Is(err, why) {
		t.Errorf("add: %v", err)
	}
	if err := n.Remove(ctx, "vm1"); !errors.Is(err, why) {
		t.Errorf("remove: %v", err)
	}
}
