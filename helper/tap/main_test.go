package tap_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/helper/tap"
)

// The tests run in a network of their own, which is the host's; the world is
// one more. Nothing leaves the machine.
const inside = "AUBERGE_TEST_NETWORK"

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "run the tests in a network of their own:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	goleak.VerifyTestMain(m)
}

const patience = time.Minute

var (
	pool      = netip.MustParsePrefix("100.115.128.0/17")
	hostAddr  = netip.MustParseAddr("203.0.113.1")
	worldAddr = netip.MustParseAddr("203.0.113.2")
	metadata  = netip.MustParseAddr("169.254.169.254")
)

func networks(t *testing.T, change ...func(*tap.Config)) *tap.Networks {
	t.Helper()
	cfg := tap.Config{Pool: pool, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, c := range change {
		c(&cfg)
	}
	n, err := tap.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// spec is the n-th VM's network.
func spec(n int) tap.Spec {
	a := netip.MustParseAddr("100.115.128.0")
	for range 8*n + 1 {
		a = a.Next()
	}
	return tap.Spec{ID: fmt.Sprintf("vm%d", n), Gateway: netip.PrefixFrom(a, 29), Guest: a.Next()}
}

// A world is what the host is connected to: a server at two addresses that
// answers each message with whom it came from, and no way back to VMs.
type world struct {
	port uint16
	do   func(func())

	mu   sync.Mutex
	seen []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{do: newNetwork(t)}
	var ns *os.File
	var err error
	w.do(func() { ns, err = os.Open("/proc/thread-self/ns/net") })
	check(t, err)
	defer ns.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	check(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) })
	w.do(func() { up(t, "lo"); up(t, "eth0", worldAddr.String()+"/24", metadata.String()+"/32") })
	up(t, "lo")
	up(t, "wan0", hostAddr.String()+"/24")
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index(t, "wan0"), Gw: worldAddr.AsSlice()}))
	w.port = w.serve(t, w.do)
	return w
}

// serve answers on every address of a network.
func (w *world) serve(t *testing.T, in func(func())) uint16 {
	t.Helper()
	var c *net.UDPConn
	var err error
	in(func() { c, err = net.ListenUDP("udp4", nil) })
	check(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.seen = append(w.seen, string(b[:n]))
			w.mu.Unlock()
			c.WriteToUDPAddrPort([]byte(from.Addr().String()), from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// heard says whether a message has arrived.
func (w *world) heard(message string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.seen, message)
}

// newNetwork makes a name space and returns what runs functions in it.
func newNetwork(t *testing.T) func(func()) {
	t.Helper()
	work, result := make(chan func()), make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		result <- err
		for f := range work {
			f()
			result <- nil
		}
		close(result)
	}()
	check(t, <-result)
	t.Cleanup(func() { close(work); <-result })
	return func(f func()) { work <- f; <-result }
}

func up(t *testing.T, name string, addrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	check(t, err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		check(t, err)
		check(t, netlink.AddrAdd(l, addr))
	}
	check(t, netlink.LinkSetUp(l))
}

func index(t *testing.T, name string) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	check(t, err)
	return l.Attrs().Index
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits for a condition that something else brings about.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick, limit := time.NewTicker(10*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(what, ": it does not happen")
		}
	}
}

// ruleset is the whole firewall, as nft tells it.
func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}

// interfaces lists those of VMs.
func interfaces(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	check(t, err)
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; len(name) > 4 && name[:4] == tap.Prefix {
			names = append(names, name)
		}
	}
	return names
}
