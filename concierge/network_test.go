package concierge

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/auberge-vm/auberge/vmm"
)

func pool(t testing.TB, prefix string) *netPool {
	t.Helper()
	p, err := newNetPool(netip.MustParsePrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNetPoolRefuses(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("fd00::/64"),
		netip.MustParsePrefix("::ffff:10.0.0.0/100")} {
		if _, err := newNetPool(p); err == nil {
			t.Errorf("a pool of %v", p)
		}
	}
}

func TestNetPool(t *testing.T) {
	p := pool(t, "100.115.128.17/27") // not the first address: it is masked
	take := func() vmm.Network {
		t.Helper()
		n, err := p.take()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := take()
	want := vmm.Network{Subnet: netip.MustParsePrefix("100.115.128.0/29"), Gateway: netip.MustParseAddr("100.115.128.1"),
		Guest: netip.MustParseAddr("100.115.128.2"), NameServer: netip.MustParseAddr("100.115.128.3")}
	if first != want {
		t.Errorf("the first network is %+v, want %+v", first, want)
	}
	second := take()
	p.release(first)
	// A network rests before it is used again.
	third, fourth := take(), take()
	if third.Subnet.String() != "100.115.128.16/29" || fourth.Subnet.String() != "100.115.128.24/29" {
		t.Errorf("then %v and %v", third.Subnet, fourth.Subnet)
	}
	if again := take(); again != first {
		t.Errorf("at last %v", again.Subnet)
	}
	if n, err := p.take(); err == nil {
		t.Errorf("a fifth of four networks: %v", n.Subnet)
	}
	p.release(second)
	p.release(second)
	p.release(vmm.Network{}) // of a VM without one
	if n := take(); n != second {
		t.Errorf("after a release: %v", n.Subnet)
	}
	if one := pool(t, "10.0.0.0/29"); true {
		if _, err := one.take(); err != nil {
			t.Error(err)
		}
		if _, err := one.take(); err == nil {
			t.Error("two networks of one")
		}
	}
}

// A network of another pool, after the configuration has changed, is no
// network of this one.
func TestNetPoolForeign(t *testing.T) {
	p := pool(t, "10.0.0.0/28")
	for _, s := range []string{"9.255.255.248/29", "10.0.0.16/29", "255.255.255.248/29", "0.0.0.0/29"} {
		n := vmm.Network{Subnet: netip.MustParsePrefix(s)}
		p.claim(n)
		if len(p.used) != 0 {
			t.Errorf("%s was taken for a part of the pool", s)
		}
		p.release(n)
	}
	p.claim(vmm.Network{Subnet: netip.MustParsePrefix("10.0.0.8/29")})
	if n, err := p.take(); err != nil || n.Subnet.String() != "10.0.0.0/29" {
		t.Errorf("beside the claimed one: %v, %v", n.Subnet, err)
	}
	if n, err := p.take(); err == nil {
		t.Errorf("the claimed one was given away: %v", n.Subnet)
	}
}

// No network is given away twice, and none is lost.
func TestNetPoolProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, err := newNetPool(netip.MustParsePrefix("10.1.0.0/26"))
		if err != nil {
			t.Fatal(err)
		}
		const size = 8
		held := map[netip.Prefix]vmm.Network{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "take") {
				n, err := p.take()
				if (err == nil) != (len(held) < size) {
					t.Fatalf("with %d of %d taken: %v", len(held), size, err)
				}
				if err != nil {
					continue
				}
				if _, ok := held[n.Subnet]; ok {
					t.Fatalf("%v is given away twice", n.Subnet)
				}
				for _, a := range []netip.Addr{n.Gateway, n.Guest, n.NameServer} {
					if !n.Subnet.Contains(a) {
						t.Fatalf("%v is not in %v", a, n.Subnet)
					}
				}
				held[n.Subnet] = n
				continue
			}
			for s, n := range held {
				p.release(n)
				delete(held, s)
				break
			}
		}
	})
}

// What a VM found running says of its network is not believed blindly.
func TestClaimOfStrangeNetworks(t *testing.T) {
	p, err := newNetPool(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	for _, subnet := range []netip.Prefix{{}, netip.MustParsePrefix("2001:db8::/29"), netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("10.0.1.0/29")} {
		p.claim(vmm.Network{Subnet: subnet})
		p.release(vmm.Network{Subnet: subnet})
	}
	for range 2 {
		if _, err := p.take(); err != nil {
			t.Error(err)
		}
	}
}

// Networks of VMs and of their containers never overlap, whoever has been there
// before, and go back.
func TestSubnets(t *testing.T) {
	pool := netip.MustParsePrefix("10.0.0.0/26") // eight networks of VMs
	p, err := newNetPool(pool)
	if err != nil {
		t.Fatal(err)
	}
	taken := map[netip.Prefix]bool{}
	take := func(n netip.Prefix) {
		t.Helper()
		for other := range taken {
			if n.Overlaps(other) {
				t.Errorf("%v overlaps %v", n, other)
			}
		}
		if pool.Bits() > n.Bits() || !pool.Contains(n.Addr()) || n != n.Masked() {
			t.Errorf("%v is not in the pool", n)
		}
		taken[n] = true
	}
	var first vmm.Network
	var subnet netip.Prefix
	for i := range 2 {
		n, err := p.take()
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.takeSubnet()
		if err != nil {
			t.Fatal(err)
		}
		if c.Bits() != 28 {
			t.Errorf("containers get %v", c)
		}
		if i == 0 {
			first, subnet = n, c
		}
		take(n.Subnet)
		take(c)
	}
	// What is left: two networks of VMs, or one of containers.
	p.release(first)
	delete(taken, first.Subnet)
	c, err := p.takeSubnet()
	if err == nil {
		take(c)
	}
	if _, err := p.takeSubnet(); err == nil {
		t.Error("there is a network where there is no room")
	}
	p.releaseSubnet(subnet)
	delete(taken, subnet)
	if c, err := p.takeSubnet(); err != nil || c != subnet {
		t.Errorf("after one went back: %v, %v", c, err)
	}

	// A restarted service knows what is in use.
	q, err := newNetPool(pool)
	if err != nil {
		t.Fatal(err)
	}
	for n := range taken {
		q.claimSubnet(n)
		q.claim(vmm.Network{Subnet: n})
	}
	q.claimSubnet(netip.Prefix{})
	q.claimSubnet(netip.MustParsePrefix("192.168.0.0/28"))
	for {
		n, err := q.take()
		if err != nil {
			break
		}
		take(n.Subnet)
	}
	// A pool may be too small for containers.
	small, err := newNetPool(netip.MustParsePrefix("10.0.0.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := small.takeSubnet(); err == nil {
		t.Errorf("a network of eight addresses holds %v", c)
	}
}
