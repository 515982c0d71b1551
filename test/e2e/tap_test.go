package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/vishvananda/netlink"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// Addresses of the host and the world that it is connected to, for
// documentation only elsewhere.
const (
	hostAddress  = "203.0.113.1"
	worldAddress = "203.0.113.2"
)

// A network is where the daemons run, with a world around it.
type network struct {
	t           *testing.T
	host, world *testbed.Network
	port        int // of the servers on every address of both
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t}
	for _, p := range []**testbed.Network{&n.host, &n.world} {
		var err error
		if *p, err = testbed.NewNetwork(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*p).Close)
	}
	world, err := n.world.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	n.in(n.host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(world.Fd()))}
		return netlink.LinkAdd(veth)
	})
	n.in(n.host, func() error { return linkUp("lo", "") })
	n.in(n.host, func() error { return linkUp("wan0", hostAddress+"/24") })
	n.in(n.world, func() error { return linkUp("eth0", worldAddress+"/24") })
	// Who asks is answered with the address that the question came from.
	for _, place := range []*testbed.Network{n.world, n.host} {
		var l net.Listener
		n.in(place, func() (err error) {
			l, err = net.Listen("tcp4", fmt.Sprintf(":%d", n.port))
			return err
		})
		n.port = l.Addr().(*net.TCPAddr).Port
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		})
		t.Cleanup(func() { l.Close(); wg.Wait() })
	}
	return n
}

func linkUp(name, address string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func (n *network) in(place *testbed.Network, f func() error) {
	n.t.Helper()
	if err := place.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

// firewall is what nft and ip tell of VMs on the host.
func (n *network) firewall() string {
	n.t.Helper()
	var out []byte
	n.in(n.host, func() (err error) {
		out, err = exec.Command("sh", "-c", "nft list ruleset; ip -o link show | grep -o 'aub-[0-9a-z]*:' || :").CombinedOutput()
		return err
	})
	return string(out)
}

// ask is a line of a guest's shell: it says what a server answers, or why it
// does not.
func (n *network) ask(address any, more string) string {
	return fmt.Sprintf(`perl -MIO::Socket::INET -e '$c = IO::Socket::INET->new(PeerAddr => "%v", PeerPort => %d, Timeout => 4, %s); print $c ? <$c> : "nobody\n"'`, address, n.port, more)
}

// Guests with TAP networks reach the world in the host's name and nothing
// else, one that is restricted nothing at all; that stays so while the helper
// and the service are killed and started again, and in the end nothing is
// left.
func TestTapNetworks(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := newBedWith(t, testbed.Options{Network: n.host})
	resolver := filepath.Join(b.Dir, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver "+worldAddress+"\nsearch example.net\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	startHelper := func() *testbed.Daemon {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		h, err := b.StartHelper(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Stop(syscall.SIGTERM) })
		return h
	}
	h := startHelper()
	args := []string{"--helper", b.HelperSocket(), "--network", "tap", "--resolv-conf", resolver}
	b.startConcierge(args...)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)

	bob.small("locked")
	if err := bob.own("ConfigureVm", "locked", "", map[string]godbus.Variant{"network": godbus.MakeVariant("restricted")}).Err; err != nil {
		t.Fatal(err)
	}
	alice.small("one")
	bob.small("two")
	starts := []<-chan *pb.StartVmResponse{alice.goStart(&pb.StartVmRequest{Name: "one"}),
		bob.goStart(&pb.StartVmRequest{Name: "two"}), bob.goStart(&pb.StartVmRequest{Name: "locked"})}
	var addresses []netip.Addr
	for _, s := range starts {
		r := <-s
		if !r.Success {
			t.Fatal(r.FailureReason)
		}
		addresses = append(addresses, ipv4(r.VmInfo.Ipv4Address))
	}
	if f := n.firewall(); strings.Count(f, "aub-") < 6 {
		t.Errorf("the firewall: %s", f)
	}

	const long = "Timeout => 60" // for who is to be reached
	script := strings.Join([]string{
		n.ask(worldAddress, long),
		n.ask(hostAddress, ""),
		n.ask(addresses[0].Prev(), ""), // its gateway
		n.ask(addresses[1], ""),
		"ip addr add " + worldAddress + "9/32 dev eth0", // what a guest calls itself is no matter
		n.ask(worldAddress, `LocalAddr => "`+worldAddress+`9"`),
		"grep -v '^#' /etc/resolv.conf",
	}, "\n")
	want := strings.Join([]string{hostAddress, "nobody", "nobody", "nobody", "nobody", "nameserver " + worldAddress, "search example.net"}, "\n")
	if got := alice.rootShell("one", script); got != want {
		t.Errorf("a guest sees:\n%s\nwant:\n%s", got, want)
	}
	if got := bob.rootShell("locked", n.ask(worldAddress, "")+"; grep -c nameserver /etc/resolv.conf || :"); got != "nobody\n0" {
		t.Errorf("a restricted guest sees: %s", got)
	}
	n.in(n.host, func() error {
		if c, err := net.Dial("tcp4", netip.AddrPortFrom(addresses[0], 22).String()); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("the host dials the guest: %v, %v", c, err)
		}
		return nil
	})

	h.Stop(syscall.SIGKILL)
	b.concierge.Stop(syscall.SIGKILL)
	h = startHelper()
	b.startConcierge(args...)
	if got := alice.rootShell("one", n.ask(worldAddress, long)); got != hostAddress {
		t.Errorf("after a restart a guest sees: %s", got)
	}
	alice.stop("one")
	bob.stop("two")
	if f := n.firewall(); !strings.Contains(f, "aub-") || strings.Contains(f, addresses[0].String()) {
		t.Errorf("with one VM left the firewall is: %s", f)
	}
	bob.stop("locked")
	b.gone()
	if f := n.firewall(); f != "" {
		t.Errorf("left: %s", f)
	}
}
