package concierge

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/concierge/host"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// travel sets the host's time zone.
func (b *bed) travel(zone string) {
	b.t.Helper()
	if b.cfg.Host.Localtime == "" {
		b.cfg.Host.Localtime = filepath.Join(b.t.TempDir(), "localtime")
	}
	next := b.cfg.Host.Localtime + ".next"
	if err := os.Symlink("/usr/share/zoneinfo/"+zone, next); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(next, b.cfg.Host.Localtime); err != nil {
		b.t.Fatal(err)
	}
}

// hears has guests note what they are told, which the function returns.
func (b *bed) hears() func() []string {
	b.t.Helper()
	heard := filepath.Join(b.t.TempDir(), "heard")
	if err := os.WriteFile(heard, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.t.Setenv(heardEnv, heard)
	return func() []string {
		text, err := os.ReadFile(heard)
		if err != nil {
			b.t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

// What the host did while the service was away, guests learn when it is back.
func TestHostChangesWhileTheServiceIsAway(t *testing.T) {
	b := newBed(t)
	heard := b.hears()
	b.travel("Europe/Paris")
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	b.travel("Asia/Tokyo")
	s = b.serve()
	await(t, "the new zone", func() bool { return slices.Contains(heard(), "zone Asia/Tokyo") })
	b.stop(s, "x")
}

func count(lines []string, want string) (n int) {
	for _, line := range lines {
		if line == want {
			n++
		}
	}
	return n
}

// A guest is told once how much space there is, and again when it goes on.
func TestSpaceAfterResuming(t *testing.T) {
	b := newBed(t)
	b.cfg.SpaceInterval = 5 * time.Millisecond
	heard := b.hears()
	s := b.serve()
	if _, err := s.StartVm(t.Context(), alice, b.termina(s, "x", minDisk), nil); err != nil {
		t.Fatal(err)
	}
	before := count(heard(), "space")
	if before == 0 {
		t.Error("it was not told at the start")
	}
	if _, err := s.SuspendVm(t.Context(), alice, &pb.SuspendVmRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ResumeVm(t.Context(), alice, &pb.ResumeVmRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	await(t, "to be told of the space again", func() bool { return count(heard(), "space") > before })
	b.stop(s, "x")
}

// A guest that is being set up, or stands still, learns afterwards what it has
// missed.
func TestHostChangesThatAGuestMisses(t *testing.T) {
	b := newBed(t)
	heard := b.hears()
	dir := b.t.TempDir()
	for _, name := range []string{"asked", "go"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(guestEnv, "slow:"+dir)
	s := b.serve()
	start := b.termina(s, "x", minDisk)
	started := make(chan error)
	go func() {
		_, err := s.StartVm(t.Context(), alice, start, nil)
		started <- err
	}()
	if err := rendezvous(filepath.Join(dir, "asked"), os.O_RDONLY); err != nil {
		t.Fatal(err)
	}
	s.hostChanged(host.NetworkChanged)
	if err := rendezvous(filepath.Join(dir, "go"), os.O_WRONLY); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	networks := func() int { return count(heard(), "network") }
	await(t, "that the network has changed meanwhile", func() bool { return networks() == 1 })
	for n, change := range []func(){func() {}, func() { s.hostChanged(host.NetworkChanged) }} {
		if _, err := s.SuspendVm(t.Context(), alice, &pb.SuspendVmRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		change()
		if _, err := s.ResumeVm(t.Context(), alice, &pb.ResumeVmRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if got := networks(); got != n+1 {
			t.Errorf("told of the network %d times, want %d", got, n+1)
		}
	}
	b.stop(s, "x")
}
