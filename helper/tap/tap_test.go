package tap_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/helper/tap"
)

// A guest reaches the world with the host's address, and its gateway answers
// it.
func TestWorld(t *testing.T) {
	w := newWorld(t)
	g := newGuest(t, networks(t), spec(1))
	if got, _ := g.asks(w, 4000, "hello"); got != hostAddr.String() {
		t.Errorf("the world was asked by %s, want the host's %v", got, hostAddr)
	}
	gateway := g.spec.Gateway.Addr()
	g.ping(gateway)
	if p, _ := g.next(protoICMP, gateway); p[0] != 0 {
		t.Errorf("the gateway answers an echo request with type %d", p[0])
	}
	g.arp(1, g.spec.Guest, gateway)
	if got := <-g.arps; got != gateway {
		t.Errorf("the host tells of %v", got)
	}
}

// A guest reaches nothing of the host and no other guest, and nobody hears
// what it sends in another's name.
func TestGuestIsKeptIn(t *testing.T) {
	w := newWorld(t)
	n := networks(t)
	g, other := newGuest(t, n, spec(1)), newGuest(t, n, spec(2))
	host := w.serve(t, func(f func()) { f() })
	own := g.spec.Guest
	for name, m := range map[string]struct {
		from netip.Addr
		to   netip.AddrPort
	}{
		"the gateway":                  {own, netip.AddrPortFrom(g.spec.Gateway.Addr(), host)},
		"the host's own address":       {own, netip.AddrPortFrom(hostAddr, host)},
		"the other's gateway":          {own, netip.AddrPortFrom(other.spec.Gateway.Addr(), host)},
		"loopback":                     {own, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), host)},
		"all in its network":           {own, netip.AddrPortFrom(netip.MustParseAddr("100.115.128.15"), host)},
		"all that hear":                {own, netip.AddrPortFrom(netip.MustParseAddr("255.255.255.255"), host)},
		"a group":                      {own, netip.AddrPortFrom(netip.MustParseAddr("224.0.0.251"), host)},
		"metadata":                     {own, netip.AddrPortFrom(metadata, w.port)},
		"as the other":                 {other.spec.Guest, netip.AddrPortFrom(worldAddr, w.port)},
		"as the world":                 {worldAddr, netip.AddrPortFrom(worldAddr, w.port)},
		"as the host":                  {hostAddr, netip.AddrPortFrom(worldAddr, w.port)},
		"as its gateway":               {g.spec.Gateway.Addr(), netip.AddrPortFrom(worldAddr, w.port)},
		"as another of its network":    {own.Next(), netip.AddrPortFrom(worldAddr, w.port)},
		"as nobody":                    {netip.IPv4Unspecified(), netip.AddrPortFrom(worldAddr, w.port)},
		"the other, in the name of us": {own, netip.AddrPortFrom(other.spec.Guest, 53)},
	} {
		t.Run(name, func(t *testing.T) {
			g.send(m.from, 4000, m.to, name)
			if _, before := g.asks(w, 4001, "after "+name); len(before) > 0 {
				t.Errorf("the guest got %x", before)
			}
			if w.heard(name) {
				t.Error("it has arrived")
			}
		})
	}
	for name, addr := range map[string]netip.Addr{"the host": hostAddr, "the other's gateway": other.spec.Gateway.Addr()} {
		g.ping(addr)
		if _, before := g.asks(w, 4002, "after ping of "+name); len(before) > 0 {
			t.Errorf("%s: the guest got %x", name, before)
		}
	}
	// What may be looked for without IP: the host tells only of the gateway,
	// and only to the guest's network.
	for _, to := range []netip.Addr{hostAddr, other.spec.Gateway.Addr()} {
		g.arp(1, own, to)
	}
	g.arp(1, worldAddr, g.spec.Gateway.Addr())
	g.arp(1, own, g.spec.Gateway.Addr())
	if got := <-g.arps; got != g.spec.Gateway.Addr() || len(g.arps) > 0 {
		t.Errorf("the host tells of %v and %d more", got, len(g.arps))
	}
	neighbours, err := netlink.NeighList(index(t, tap.Prefix+g.spec.ID), netlink.FAMILY_V4)
	check(t, err)
	for _, l := range neighbours {
		if a, _ := netip.AddrFromSlice(l.IP.To4()); l.HardwareAddr != nil && a != own {
			t.Errorf("the guest has made the host take it for %v", a)
		}
	}
	select {
	case p := <-other.packets:
		t.Errorf("the other guest got %x", p)
	default:
	}
	if v6, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + tap.Prefix + g.spec.ID + "/disable_ipv6"); err != nil || string(v6) != "1\n" {
		t.Errorf("IPv6 is not disabled: %q, %v", v6, err)
	}
}

// What the host does to packets for others does not help a guest either.
func TestRedirectedByTheHost(t *testing.T) {
	w := newWorld(t)
	n := networks(t)
	g := newGuest(t, n, spec(1))
	host := w.serve(t, func(f func()) { f() })
	check(t, exec.Command("nft", fmt.Sprintf(`table ip published {
		chain prerouting {
			type nat hook prerouting priority dstnat;
			ip daddr %[1]v udp dport 80 dnat to %[2]v:%[3]d
			ip daddr %[2]v udp dport 81 redirect to :%[4]d
			ip daddr %[2]v udp dport 82 dnat to %[5]v:%[3]d
		}
	}`, hostAddr, worldAddr, w.port, host, metadata)).Run())
	t.Cleanup(func() { exec.Command("nft", "delete table ip published").Run() })
	for port, at := range map[uint16]netip.Addr{80: hostAddr, 81: worldAddr, 82: worldAddr} {
		message := fmt.Sprint("to port ", port)
		g.send(g.spec.Guest, 4000+port, netip.AddrPortFrom(at, port), message)
		if g.asks(w, 4000, "after"); w.heard(message) {
			t.Errorf("%s: it has arrived", message)
		}
	}
}

// Neither processes of the host nor the world reach a guest that has not
// asked.
func TestGuestIsNotReached(t *testing.T) {
	w := newWorld(t)
	g := newGuest(t, networks(t), spec(1))
	to := &net.UDPAddr{IP: g.spec.Guest.AsSlice(), Port: 4000}
	say := func() error {
		c, err := net.DialUDP("udp4", nil, to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("knock"))
		return err
	}
	if err := say(); !errors.Is(err, unix.EPERM) {
		t.Errorf("the host says to the guest what it likes: %v", err)
	}
	if c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(g.spec.Guest, 22).String(), patience); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("the host dials the guest: %v, %v", c, err)
	}
	var err error
	w.do(func() {
		_, pool, _ := net.ParseCIDR(pool.String())
		if err = netlink.RouteAdd(&netlink.Route{Dst: pool, Gw: hostAddr.AsSlice()}); err == nil {
			err = say()
		}
	})
	check(t, err)
	if _, before := g.asks(w, 4000, "after"); len(before) > 0 {
		t.Errorf("the guest got %x", before)
	}
}

func TestRestricted(t *testing.T) {
	w := newWorld(t)
	n := networks(t)
	s := spec(1)
	s.Restricted = true
	g, free := newGuest(t, n, s), newGuest(t, n, spec(2))
	g.send(s.Guest, 4000, netip.AddrPortFrom(worldAddr, w.port), "restricted")
	g.ping(s.Gateway.Addr())
	if _, before := g.next(protoICMP, s.Gateway.Addr()); len(before) > 0 {
		t.Errorf("the guest got %x", before)
	}
	free.asks(w, 4000, "free")
	if w.heard("restricted") {
		t.Error("a restricted guest has reached the world")
	}
}

// A guest cannot fill the host's table of connections.
func TestConnectionsAreCounted(t *testing.T) {
	w := newWorld(t)
	n := networks(t, func(c *tap.Config) { c.MaxConnections = 3 })
	g, other := newGuest(t, n, spec(1)), newGuest(t, n, spec(2))
	for i := range 3 {
		g.asks(w, uint16(4000+i), fmt.Sprint("connection ", i))
	}
	g.send(g.spec.Guest, 4003, netip.AddrPortFrom(worldAddr, w.port), "one too many")
	other.asks(w, 4000, "of the other")
	if g.asks(w, 4000, "an old one"); w.heard("one too many") {
		t.Error("the guest has more connections than it may")
	}
}

// An interface goes with its last descriptor, and the rules with it; those of
// others stay.
func TestNothingIsLeft(t *testing.T) {
	n := networks(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	a, err := n.Add(t.Context(), spec(1))
	check(t, err)
	b, err := n.Add(t.Context(), spec(2))
	check(t, err)
	a.Close()
	await(t, "the rules of one go", func() bool { return !strings.Contains(ruleset(t), "aub-vm1") })
	if r := ruleset(t); !strings.Contains(r, `"aub-vm2" . 100.115.128.18`) {
		t.Errorf("the other's have gone too: %s", r)
	}
	b.Close()
	await(t, "the table goes", func() bool { return ruleset(t) == "" })
	if i := interfaces(t); len(i) > 0 {
		t.Errorf("left: %v", i)
	}
}

// Another process finds the networks that a killed one has made.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	g := newGuest(t, networks(t), spec(1))
	gone, err := networks(t).Add(t.Context(), spec(2))
	check(t, err)
	gone.Close()
	next := networks(t)
	f, err := next.Add(t.Context(), spec(3))
	check(t, err)
	defer f.Close()
	if r := ruleset(t); strings.Contains(r, "aub-vm2") || !strings.Contains(r, "aub-vm1") || !strings.Contains(r, "aub-vm3") {
		t.Errorf("the rules are not those of VMs 1 and 3: %s", r)
	}
	if got, _ := g.asks(w, 4000, "hello"); got != hostAddr.String() {
		t.Errorf("the world was asked by %s", got)
	}
	for _, id := range []string{"vm1", "vm3", "vm3", "vm4"} {
		check(t, next.Remove(t.Context(), id))
	}
	if r, i := ruleset(t), interfaces(t); r != "" || len(i) > 0 {
		t.Errorf("left: %v %s", i, r)
	}
}

// Whoever has the descriptor can make the interface outlive it, but not its
// removal.
func TestPersistentTap(t *testing.T) {
	n := networks(t)
	f, err := n.Add(t.Context(), spec(1))
	check(t, err)
	raw, err := f.SyscallConn()
	check(t, err)
	raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	check(t, err)
	f.Close()
	if len(interfaces(t)) != 1 {
		t.Fatal("the interface is gone, so there is nothing to test")
	}
	check(t, n.Remove(t.Context(), "vm1"))
	if i := interfaces(t); len(i) > 0 {
		t.Errorf("left: %v", i)
	}
}

// A firewall that reloads its rules may flush everybody's.
func TestFlushedFirewall(t *testing.T) {
	w := newWorld(t)
	n := networks(t)
	g := newGuest(t, n, spec(1))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for range 3 {
		// Run may not watch yet; then it finds the table missing.
		c, err := nftables.New()
		check(t, err)
		c.FlushRuleset()
		check(t, c.Flush())
		await(t, "the table is there again", func() bool { return strings.Contains(ruleset(t), `"aub-vm1" . 100.115.128.10`) })
	}
	if got, _ := g.asks(w, 4000, "hello"); got != hostAddr.String() {
		t.Errorf("the world was asked by %s", got)
	}
	// Without Run the next change notices.
	cancel()
	wg.Wait()
	other := newGuest(t, n, spec(2))
	c, err := nftables.New()
	check(t, err)
	c.FlushRuleset()
	check(t, c.Flush())
	// Somebody else has the kernel remember connections.
	check(t, exec.Command("nft", "table inet other { chain forward { type filter hook forward priority filter; ct state established accept; }; }").Run())
	t.Cleanup(func() { exec.Command("nft", "delete table inet other").Run() })
	g.send(g.spec.Guest, 5000, netip.AddrPortFrom(other.spec.Guest, 5000), "while nobody looked")
	other.next(protoUDP, g.spec.Guest)
	other.send(other.spec.Guest, 5000, netip.AddrPortFrom(g.spec.Guest, 5000), "an answer")
	g.next(protoUDP, other.spec.Guest)
	f, err := n.Add(t.Context(), spec(3))
	check(t, err)
	defer f.Close()
	if r := ruleset(t); !strings.Contains(r, "aub-vm1") || !strings.Contains(r, "aub-vm3") {
		t.Errorf("the rules are not there: %s", r)
	}
	// What was begun meanwhile does not go on.
	g.send(g.spec.Guest, 5000, netip.AddrPortFrom(other.spec.Guest, 5000), "and now")
	g.asks(w, 4000, "after")
	if _, before := other.asks(w, 4000, "after"); len(before) > 0 {
		t.Errorf("the other guest got %x", before)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := networks(t)
	const many = 12
	files := make([]*os.File, many)
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			var err error
			if files[i], err = n.Add(t.Context(), spec(i)); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	r := ruleset(t)
	for i, f := range files {
		if s := spec(i); !strings.Contains(r, fmt.Sprintf("%q . %v", tap.Prefix+s.ID, s.Guest)) {
			t.Errorf("VM %d is not in the rules: %s", i, r)
		}
		wg.Go(func() {
			f.Close()
			if err := n.Remove(t.Context(), spec(i).ID); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if r, i := ruleset(t), interfaces(t); r != "" || len(i) > 0 {
		t.Errorf("left: %v %s", i, r)
	}
}
