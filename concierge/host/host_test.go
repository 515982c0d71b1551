package host_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/concierge/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing is asserted on it.
const patience = 30 * time.Second

func write(t *testing.T, path, text string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, path, target string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.Symlink(target, tmp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestTimezone(t *testing.T) {
	for _, test := range []struct{ name, link, file, want string }{
		{"a link", "/usr/share/zoneinfo/Europe/Paris", "", "Europe/Paris"},
		{"a relative link", "../usr/share/zoneinfo/America/Argentina/Salta", "", "America/Argentina/Salta"},
		{"nothing at all", "", "", "UTC"},
		{"a copy with its name beside it", "copy", "Asia/Tokyo\n", "Asia/Tokyo"},
		{"a link elsewhere", "/etc/zone", "Asia/Tokyo", "Asia/Tokyo"},
		{"a copy without a name", "copy", "", ""},
		{"a link to the zones' directory", "/usr/share/zoneinfo/", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			h := host.Host{Localtime: filepath.Join(dir, "localtime")}
			switch test.link {
			case "":
			case "copy":
				write(t, h.Localtime, "TZif")
			default:
				link(t, h.Localtime, test.link)
			}
			if test.file != "" {
				write(t, filepath.Join(dir, "timezone"), test.file)
			}
			got, err := h.Timezone()
			if got != test.want || (err != nil) != (test.want == "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestDNS(t *testing.T) {
	h := host.Host{Resolver: filepath.Join(t.TempDir(), "resolv.conf")}
	if d, err := h.DNS(); err != nil || len(d.NameServers) > 0 {
		t.Errorf("without a file: %v, %v", d, err)
	}
	write(t, h.Resolver, "# made by hand\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 \ndomain old.test\nsearch a.test b.test\noptions edns0\nnameserver\n\xff\xfe\n")
	want := host.DNS{NameServers: []string{"192.0.2.1", "2001:db8::1"}, SearchDomains: []string{"a.test", "b.test"}}
	got, err := h.DNS()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Other programs keep the configuration elsewhere and make /etc/resolv.conf a
// link to it.
func TestResolverBehindALink(t *testing.T) {
	one, other := t.TempDir(), t.TempDir()
	h := host.Host{Localtime: filepath.Join(t.TempDir(), "localtime"), Resolver: filepath.Join(t.TempDir(), "resolv.conf")}
	write(t, filepath.Join(one, "resolv.conf"), "nameserver 192.0.2.1\n")
	link(t, h.Resolver, filepath.Join(one, "resolv.conf"))
	changes := watched(t, h)
	write(t, filepath.Join(one, "resolv.conf"), "nameserver 192.0.2.2\n")
	expect(t, changes, host.DNSChanged)
	write(t, filepath.Join(other, "resolv.conf"), "nameserver 192.0.2.3\n")
	link(t, h.Resolver, filepath.Join(other, "resolv.conf"))
	expect(t, changes, host.DNSChanged)
	write(t, filepath.Join(other, "resolv.conf"), "nameserver 192.0.2.4\n")
	expect(t, changes, host.DNSChanged)
}

// watched runs a watcher until the test ends.
func watched(t *testing.T, h host.Host) <-chan host.Change {
	t.Helper()
	w, err := h.Watch(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	changes := make(chan host.Change, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, func(c host.Change) { changes <- c })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return changes
}

func expect(t *testing.T, changes <-chan host.Change, want host.Change) {
	t.Helper()
	select {
	case c := <-changes:
		if c != want {
			t.Errorf("%v has changed, not %v", c, want)
		}
	case <-time.After(patience):
		t.Errorf("nobody noticed that %v has changed", want)
	}
}

func TestChangesOfFiles(t *testing.T) {
	dir := t.TempDir()
	h := host.Host{Localtime: filepath.Join(dir, "localtime"), Resolver: filepath.Join(dir, "resolv.conf")}
	link(t, h.Localtime, "/usr/share/zoneinfo/UTC")
	write(t, h.Resolver, "nameserver 192.0.2.1\n")
	changes := watched(t, h)
	link(t, h.Localtime, "/usr/share/zoneinfo/Europe/Paris")
	expect(t, changes, host.TimezoneChanged)
	// The same content again is no change: the next one that is told is the
	// name server's.
	write(t, h.Resolver, "nameserver 192.0.2.1\n")
	write(t, filepath.Join(dir, "another"), "file")
	write(t, h.Resolver, "nameserver 192.0.2.2\n")
	expect(t, changes, host.DNSChanged)
	if err := os.Remove(h.Localtime); err != nil {
		t.Fatal(err)
	}
	expect(t, changes, host.TimezoneChanged)
}

func TestFollowTimezone(t *testing.T) {
	h := host.Host{Localtime: filepath.Join(t.TempDir(), "localtime")}
	link(t, h.Localtime, "/usr/share/zoneinfo/UTC")
	ctx, cancel := context.WithCancel(t.Context())
	changes, done := make(chan string, 16), make(chan error, 1)
	go func() {
		done <- h.FollowTimezone(ctx, slog.New(slog.DiscardHandler), func() {
			zone, _ := h.Timezone()
			changes <- zone
		})
	}()
	// When it has begun to look, nobody says: a change that is noticed does.
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	zones := []string{"Europe/Paris", "Asia/Tokyo"}
	for n, seen := 0, false; !seen; n++ {
		link(t, h.Localtime, "/usr/share/zoneinfo/"+zones[n%2])
		select {
		case <-changes:
			seen = true
		case <-tick.C:
		}
		if n > 100 {
			t.Fatal("nobody noticed that the time zone has changed")
		}
	}
	link(t, h.Localtime, "/usr/share/zoneinfo/America/New_York")
	for zone := ""; zone != "America/New_York"; {
		select {
		case zone = <-changes:
		case <-time.After(patience):
			t.Fatal("nobody noticed that the time zone has changed again")
		}
	}
	// The same again is no change.
	link(t, h.Localtime, "/usr/share/zoneinfo/America/New_York")
	write(t, filepath.Join(filepath.Dir(h.Localtime), "another"), "file")
	link(t, h.Localtime, "/usr/share/zoneinfo/Asia/Kolkata")
	select {
	case zone := <-changes:
		if zone != "Asia/Kolkata" {
			t.Errorf("a change to %s is told", zone)
		}
	case <-time.After(patience):
		t.Fatal("nobody noticed that the time zone has changed once more")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (host.Host{Localtime: "/no/such/directory/localtime"}).FollowTimezone(t.Context(), slog.New(slog.DiscardHandler), nil); err == nil {
		t.Error("a directory that is not there is watched")
	}
}

// A watcher that was told too much at once listens again.
func TestTooManyRoutes(t *testing.T) {
	dir := t.TempDir()
	h := host.Host{Localtime: filepath.Join(dir, "localtime"), Resolver: filepath.Join(dir, "resolv.conf")}
	w, err := h.Watch(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w.Overflow()
	write(t, h.Resolver, "nameserver 192.0.2.1\n")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	heard := false
	w.Run(ctx, func(host.Change) {
		heard = w.Hears()
		cancel()
	})
	if !heard {
		t.Error("nobody tells of routes any more")
	}
}

// In a network namespace of the test's own.
func TestChangeOfTheNetwork(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w, err := host.Host{Localtime: filepath.Join(dir, "localtime"), Resolver: filepath.Join(dir, "resolv.conf")}.Watch(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 2), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1), Dst: nil}); err != nil {
		t.Fatal(err)
	}
	// Run reads the routes from this thread, which is in the namespace.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen := false
	w.Run(ctx, func(c host.Change) {
		if seen = c == host.NetworkChanged; !seen {
			t.Errorf("%v has changed", c)
		}
		cancel()
	})
	if !seen {
		t.Error("nobody noticed the new route")
	}
}
