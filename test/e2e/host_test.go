package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// eventually waits until look finds what it wants; nothing announces that.
func eventually(t *testing.T, what string, look func() (found string, ok bool)) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		found, ok := look()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still %q", what, found)
		}
	}
}

// replace puts a file in the place of another, as careful programs do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func relink(t *testing.T, path, target string) {
	t.Helper()
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A guest has the host's time zone and search domains from its start, and
// follows when the host's change.
func TestGuestFollowsHost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	etc := filepath.Join(b.Dir, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	localtime, resolver := filepath.Join(etc, "localtime"), filepath.Join(etc, "resolv.conf")
	relink(t, localtime, "/usr/share/zoneinfo/Asia/Tokyo")
	replace(t, resolver, "nameserver 192.0.2.53\nsearch one.test\n")
	b.restartConcierge("--localtime", localtime, "--resolv-conf", resolver)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.start(&pb.StartVmRequest{Name: "x"})

	zone := func() string { t.Helper(); return alice.vsh("x", "date", "+%z") }
	if got := zone(); got != "+0900" {
		t.Errorf("the guest's zone is %s", got)
	}
	if got := alice.vsh("x", "cat", "/etc/resolv.conf"); !strings.Contains(got, "search one.test") {
		t.Errorf("resolv.conf: %s", got)
	}
	settings := func(c *client) *pb.DnsSettings {
		t.Helper()
		var out []byte
		c.bare("GetDnsSettings", &out)
		var d pb.DnsSettings
		unmarshal(t, out, &d)
		return &d
	}
	if d := settings(bob); strings.Join(d.Nameservers, " ") != "192.0.2.53" || strings.Join(d.SearchDomains, " ") != "one.test" {
		t.Errorf("GetDnsSettings: %v", d)
	}

	// The signal is everybody's, for those who ask for it.
	heard := make(chan *godbus.Signal, 16)
	bob.conn.Signal(heard)
	if err := bob.conn.AddMatchSignal(godbus.WithMatchInterface(dbus.ConciergeInterface), godbus.WithMatchMember(dbus.DnsSettingsChanged)); err != nil {
		t.Fatal(err)
	}
	replace(t, resolver, "nameserver 192.0.2.54\nsearch two.test three.test\n")
	select {
	case s := <-heard:
		var d pb.DnsSettings
		unmarshal(t, s.Body[0].([]byte), &d)
		if strings.Join(d.Nameservers, " ") != "192.0.2.54" || strings.Join(d.SearchDomains, " ") != "two.test three.test" {
			t.Errorf("DnsSettingsChanged: %v", &d)
		}
	case <-time.After(patience):
		t.Fatal("DnsSettingsChanged did not come")
	}
	eventually(t, "the guest's search domains", func() (string, bool) {
		got := alice.vsh("x", "cat", "/etc/resolv.conf")
		return got, strings.Contains(got, "search two.test three.test")
	})
	relink(t, localtime, "/usr/share/zoneinfo/America/New_York")
	eventually(t, "the guest's zone", func() (string, bool) {
		got := zone()
		return got, got == "-0500" || got == "-0400"
	})

	// What changed while it was suspended, it learns when it goes on.
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "x"})
	relink(t, localtime, "/usr/share/zoneinfo/Asia/Kolkata")
	replace(t, resolver, "nameserver 192.0.2.55\nsearch four.test\n")
	<-heard // the service has seen it
	alice.ok("ResumeVm", &pb.ResumeVmRequest{Name: "x"})
	if got := zone(); got != "+0530" {
		t.Errorf("after it was suspended the guest's zone is %s", got)
	}
	if got := alice.vsh("x", "cat", "/etc/resolv.conf"); !strings.Contains(got, "search four.test") {
		t.Errorf("after it was suspended resolv.conf is: %s", got)
	}
	alice.stop("x")
}

// smallState restarts the service with an empty state directory that can hold
// so many bytes.
func (b *bed) smallState(size int, args ...string) {
	b.t.Helper()
	b.onSmall(b.StateDir, size, args...)
}

// A guest that writes more than the host's disk takes gets an error, and can
// still be talked to.
func TestGuestFillsHost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.smallState(64 << 20)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 30}, &disk)
	alice.start(&pb.StartVmRequest{Name: "x", Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}})
	out := alice.rootShell("x", "dd if=/dev/zero of=/dev/vdb bs=1M count=128 conv=fsync 2>&1 || echo failed")
	if !strings.HasSuffix(out, "failed") {
		t.Errorf("128 MiB went onto a disk of 64: %s", out)
	}
	if got := alice.vsh("x", "echo", "well"); got != "well" {
		t.Errorf("afterwards the guest says %q", got)
	}
	alice.stop("x")
	b.gone()
}

// A guest on a sparse disk learns that the host's disk becomes full, and sets
// aside what the host has not got.
func TestStorageBalloon(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const size = 1600 << 20
	b.smallState(size, "--space-interval", "300ms")
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 4 << 30}, &disk)
	alice.start(&pb.StartVmRequest{Name: "x", StartTermina: true, Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}})
	available := func() int64 {
		t.Helper()
		n, err := strconv.ParseInt(alice.rootShell("x", "df -B1 --output=avail /mnt/stateful | tail -n 1"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	within := func(what string, limit int64) {
		t.Helper()
		eventually(t, what, func() (string, bool) {
			n := available()
			return strconv.FormatInt(n, 10), n < limit
		})
	}
	within("with 1.6 GiB free on the host the guest has", 700<<20)
	full := filepath.Join(b.StateDir, "full")
	if err := os.WriteFile(full, make([]byte, size-300<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	within("with the host's disk full the guest has", 100<<20)
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	eventually(t, "with room on the host again the guest has", func() (string, bool) {
		n := available()
		return strconv.FormatInt(n, 10), n > 300<<20
	})
	alice.stop("x")
}
