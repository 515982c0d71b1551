package concierge

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// word is a VM's in one word, empty when it is not there.
func (b *bed) word(s *Service, name string) string {
	b.t.Helper()
	st, err := s.GetState(b.t.Context(), alice)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, v := range st.VMs {
		if v["name"] == name {
			return v["status"].(string)
		}
	}
	return ""
}

// statuses checks those of several VMs, written "x running, y suspended".
func (b *bed) statuses(s *Service, want string) {
	b.t.Helper()
	for vm := range strings.SplitSeq(want, ", ") {
		name, status, _ := strings.Cut(vm, " ")
		if got := b.word(s, name); got != status {
			b.t.Errorf("%s is %q, want %q", name, got, status)
		}
	}
}

func (b *bed) mustStart(s *Service, names ...string) {
	b.t.Helper()
	for _, name := range names {
		if _, err := b.small(s, name); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bed) suspend(s *Service, name string) {
	b.t.Helper()
	if _, err := s.SuspendVm(b.t.Context(), alice, &pb.SuspendVmRequest{Name: name}); err != nil {
		b.t.Fatal(err)
	}
}

// A host that sleeps suspends the VMs that run, and lets go on those and no
// others when it is awake, with the right time.
func TestHostSleeps(t *testing.T) {
	b := newBed(t)
	heard := b.hears()
	s := b.serve()
	b.mustStart(s, "run", "own", "taken", "left")
	b.suspend(s, "own")
	before := heard()

	s.PrepareForSleep(t.Context(), true)
	b.statuses(s, "run suspended, own suspended, taken suspended, left suspended")
	if n := count(heard(), "prepare") - count(before, "prepare"); n != 3 {
		t.Errorf("%d guests were told to prepare, want 3", n)
	}
	s.PrepareForSleep(t.Context(), true) // said twice
	// While the host is on its way their user decides about them.
	b.suspend(s, "taken")
	if _, err := s.ResumeVm(t.Context(), alice, &pb.ResumeVmRequest{Name: "left"}); err != nil {
		t.Fatal(err)
	}
	before = heard()
	s.PrepareForSleep(t.Context(), false)
	b.statuses(s, "run running, own suspended, taken suspended, left running")
	if n := count(heard(), "time") - count(before, "time"); n != 2 {
		t.Errorf("%d guests were told the time, want 2", n)
	}
	s.PrepareForSleep(t.Context(), false)
	b.statuses(s, "run running, own suspended, taken suspended, left running")
}

// A service that ends while its host sleeps leaves to the next one whom to let
// go on.
func TestHostSleepsAndTheServiceRestarts(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.mustStart(s, "run", "own")
	b.suspend(s, "own")
	s.PrepareForSleep(t.Context(), true)
	s.Close()
	s = b.serve()
	b.statuses(s, "run suspended, own suspended")
	s.PrepareForSleep(t.Context(), false)
	b.statuses(s, "run running, own suspended")
	s.Close()
	s = b.serve()
	b.suspend(s, "run")
	s.PrepareForSleep(t.Context(), false)
	b.statuses(s, "run suspended, own suspended")
}

// A service that is killed when it has noted that a VM sleeps with its host,
// and before the VM stands still, does not make a VM that its user suspends
// later one that goes on by itself.
func TestHostSleepsAndTheServiceIsKilled(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.mustStart(s, "x")
	v, err := s.find(alice, "x")
	if err != nil {
		t.Fatal(err)
	}
	s.setAsleep(v, true)
	s.Close()
	s = b.serve()
	s.PrepareForSleep(t.Context(), false) // it does not sleep after all
	b.statuses(s, "x running")
	b.suspend(s, "x")
	s.PrepareForSleep(t.Context(), false)
	b.statuses(s, "x suspended")
}

// What is noted of a VM that has ended meanwhile leaves no record: the next
// service would tell of its end again.
func TestHostSleepsAndAVMEnds(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.mustStart(s, "x")
	v, err := s.find(alice, "x")
	if err != nil {
		t.Fatal(err)
	}
	b.stop(s, "x")
	s.setAsleep(v, true)
	b.gone()
	if records, err := os.ReadDir(s.recordsDir()); err != nil || len(records) > 0 {
		t.Errorf("records: %v, %v", records, err)
	}
}

// A host does not wait for a guest that cannot prepare itself; the VM stands
// still all the same.
func TestHostSleepsWithoutTheGuest(t *testing.T) {
	b := newBed(t)
	t.Setenv(guestEnv, "sleepless")
	s := b.serve()
	b.mustStart(s, "x")
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
	defer cancel()
	s.PrepareForSleep(ctx, true)
	b.statuses(s, "x suspended")
	s.PrepareForSleep(ctx, false)
	b.statuses(s, "x running")
}

// A VM that is being started while the host sleeps gets the right time.
func TestHostSleepsDuringAStart(t *testing.T) {
	b := newBed(t)
	asked, letGo := slowTermina(t)
	heard := b.hears()
	s := b.serve()
	started := make(chan error, 1)
	req := b.termina(s, "x", minDisk)
	go func() {
		_, err := s.StartVm(t.Context(), alice, req, nil)
		started <- err
	}()
	asked()
	before := count(heard(), "time")
	s.PrepareForSleep(t.Context(), true)
	s.PrepareForSleep(t.Context(), false)
	letGo()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	await(t, "the right time", func() bool { return count(heard(), "time") > before })
}

// A host that shuts down stops all VMs, those too that are being started, and
// lets nobody start one until the shutdown is called off.
func TestHostShutsDown(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.mustStart(s, "x", "y")
	b.suspend(s, "y")
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
	defer cancel()
	b.events.take()
	s.PrepareForShutdown(ctx, true)
	said := b.events.take()
	for _, want := range []string{"VmStopping x", "VmStopped x", "VmStopping y", "VmStopped y"} {
		if !slices.Contains(said, want) {
			t.Errorf("nobody said %q: %q", want, said)
		}
	}
	b.gone()
	if _, err := b.small(s, "x"); !errors.Is(err, ErrHostShutdown) {
		t.Errorf("a start while the host shuts down: %v", err)
	}
	s.PrepareForShutdown(ctx, false)
	b.mustStart(s, "x")
	b.stop(s, "x")
}

// A VM that does not stop in the host's time keeps the host from nothing, and
// is being stopped on.
func TestHostShutsDownBeforeAVM(t *testing.T) {
	b := newBed(t)
	asked, letGo := slowToEnd(t)
	s := b.serve()
	b.mustStart(s, "x")
	v, err := s.find(alice, "x")
	if err != nil {
		t.Fatal(err)
	}
	// Only then it waits at its end.
	await(t, "the hypervisor is ready", func() bool {
		console, err := v.machine.Console(t.Context())
		return err != nil || len(console) > 0
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.PrepareForShutdown(ctx, true)
	}()
	asked()
	cancel()
	<-done
	b.statuses(s, "x stopping")
	letGo()
	b.awaitGone(s)
	b.gone()
}

func TestUserLogsOut(t *testing.T) {
	for policy, want := range map[LogoutPolicy]string{"": "running", LogoutKeep: "running", LogoutSuspend: "suspended", LogoutStop: ""} {
		t.Run(string(policy), func(t *testing.T) {
			b := newBed(t)
			b.cfg.Logout = policy
			s := b.serve()
			b.mustStart(s, "x")
			s.UserRemoved(5) // somebody else
			s.UserRemoved(alice.Owner.UID)
			await(t, "the VM is as it should be", func() bool { return b.word(s, "x") == want })
			// The host's sleep changes nothing about it.
			s.PrepareForSleep(t.Context(), false)
			b.statuses(s, "x "+want)
			if want != "" {
				b.stop(s, "x")
			}
			b.gone()
		})
	}
}

// VMs of an account that is removed are stopped, and their disks stay.
func TestUserIsRemoved(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := s.CreateDiskImage(t.Context(), alice, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	b.mustStart(s, "x")
	b.accounts(64101) // another one goes
	b.accounts(5)
	await(t, "the VM has gone", func() bool { return b.word(s, "x") == "" })
	b.gone()
	disks, err := s.ListVmDisks(t.Context(), alice, &pb.ListVmDisksRequest{AllLocations: true})
	if err != nil || len(disks.(*pb.ListVmDisksResponse).Images) != 1 {
		t.Errorf("the disks: %v, %v", disks, err)
	}
	if log := b.log.String(); strings.Count(log, "account is gone") != 1 || !strings.Contains(log, "64101") {
		t.Error("the administrator is not told once")
	}

	// One that goes while the service is away is found at its start.
	b.accounts(64101)
	b.mustStart(s, "x")
	s.Close()
	b.accounts(5)
	s = b.serve()
	await(t, "the VM has gone", func() bool { return b.word(s, "x") == "" })
	b.gone()
}

// Where nobody can tell whether there is an account, its VMs run on.
func TestUserThatNobodyCanLookUp(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.mustStart(s, "x")
	b.cfg.Host.Passwd += ".missing"
	s.Close()
	s = b.serve()
	await(t, "the look-up has failed", func() bool { return strings.Contains(b.log.String(), "account was not found") })
	b.statuses(s, "x running")
	b.stop(s, "x")
}
