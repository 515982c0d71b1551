package e2e

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// number is what an environment variable says, or what `make test` does.
func number(t *testing.T, env string, usual int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no count", env, s)
	}
	return n
}

// A survival is a bed in which vm_concierge is killed again and again. One VM
// is there all the time, with an open shell; another one comes and goes.
type survival struct {
	*bed
	alice  *client
	ear    *ear
	rnd    *rand.Rand
	steady *pb.VmInfo
	shell  *session
	boot   time.Duration // what a start takes, roughly
}

// interrupt kills vm_concierge at some moment of what goes on.
func (s *survival) interrupt(within time.Duration) {
	s.t.Helper()
	sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[s.rnd.IntN(2)]
	after := time.Duration(s.rnd.Int64N(int64(within)))
	s.t.Logf("%v after %v", sig, after)
	<-time.After(after) // any moment is as good as another: that is the test
	s.concierge.Stop(sig)
}

// settled says whether exactly those VMs run that the service knows.
func (s *survival) settled() bool {
	var list pb.ListVmsResponse
	s.alice.must("ListVms", &pb.ListVmsRequest{}, &list)
	var known []int
	for _, v := range list.Vms {
		if v.Status != pb.VmStatus_VM_STATUS_RUNNING {
			return false
		}
		known = append(known, int(v.VmInfo.Pid))
	}
	run := s.process("qemu-system")
	slices.Sort(known)
	slices.Sort(run)
	return slices.Equal(known, run) && len(s.leftovers()) == 2*len(known) && len(s.process("auberge-vm")) == len(known)
}

// check has everything in order again, once vm_concierge is back.
func (s *survival) check() {
	s.t.Helper()
	if i := s.alice.info("steady"); i.GetPid() != s.steady.Pid || i.GetCid() != s.steady.Cid || i.GetIpv4Address() != s.steady.Ipv4Address ||
		i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		s.t.Fatalf("the VM was %v and is %v", s.steady, i)
	}
	if got := s.shell.say("echo here"); got != "here" {
		s.t.Fatalf("the open shell says %q", got)
	}
	s.await("the service knows the VMs that run, and no others", s.settled)
}

func (s *survival) runs() bool { return s.alice.info("other") != nil }

// Rounds. Each leaves the other VM running or gone.

func (s *survival) whileStarting() {
	if s.runs() {
		s.alice.stop("other")
	}
	done := s.alice.goStart(&pb.StartVmRequest{Name: "other"})
	s.interrupt(s.boot)
	<-done
	s.startConcierge()
}

func (s *survival) needOther() *pb.VmInfo {
	if !s.runs() {
		s.alice.start(&pb.StartVmRequest{Name: "other"})
	}
	return s.alice.info("other")
}

func (s *survival) whileRunning() {
	before := s.needOther()
	s.interrupt(100 * time.Millisecond)
	s.startConcierge()
	if i := s.alice.info("other"); i.GetPid() != before.Pid || i.GetCid() != before.Cid {
		s.t.Fatalf("the VM was %v and is %v", before, i)
	}
	if got := s.alice.vsh("other", "echo", "here"); got != "here" {
		s.t.Fatalf("the other VM says %q", got)
	}
}

func (s *survival) whileStopping() {
	s.needOther()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.alice.call("StopVm", &pb.StopVmRequest{Name: "other"}, &pb.SuccessFailureResponse{})
	}()
	s.interrupt(time.Second)
	<-done
	s.startConcierge()
	// A guest that has been told goes on with it; one that has not is told now.
	s.alice.stop("other")
}

// whileAway: the VM ends while nobody looks, and the next service tells so.
func (s *survival) whileAway() {
	vm := s.needOther()
	s.ear.silent(s.alice, "VmStartingUp", "VmStarted", "VmStopping", "VmStopped")
	s.interrupt(100 * time.Millisecond)
	if err := syscall.Kill(int(vm.Pid), syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.startConcierge()
	s.ear.untilStopped("other")
	if s.runs() {
		s.t.Fatal("a VM that has ended is still there")
	}
}

// whileFlooded: the guest fills its console meanwhile.
func (s *survival) whileFlooded() {
	s.alice.rootShell("steady", "touch /run/flood; (while test -e /run/flood; do head -c 3000 /dev/urandom; sleep 0.01; done >/dev/console 2>/dev/null </dev/null &)")
	s.interrupt(time.Second)
	s.startConcierge()
	s.check()
	s.alice.rootShell("steady", "rm /run/flood")
}

// vm_concierge is killed at random moments of VMs' lives. Whatever it did then,
// afterwards every VM that runs is known, as the same, and every other one is
// gone without a trace.
func TestSurvival(t *testing.T) {
	t.Parallel()
	seed := uint64(number(t, "AUBERGE_SEED", int(time.Now().UnixNano()&0xffffffff)))
	rounds := number(t, "AUBERGE_ROUNDS", 10)
	t.Logf("AUBERGE_SEED=%d AUBERGE_ROUNDS=%d", seed, rounds)
	b := newBed(t)
	alice := b.client(testbed.Alice)
	s := &survival{bed: b, alice: alice, ear: alice.listen(), rnd: rand.New(rand.NewPCG(seed, 0))}
	alice.small("other")
	began := time.Now()
	s.steady = alice.start(&pb.StartVmRequest{Name: "steady"})
	s.boot = time.Since(began)
	s.shell = alice.shell("steady")
	kinds := []struct {
		name string
		do   func()
	}{
		{"starting", s.whileStarting}, {"running", s.whileRunning}, {"stopping", s.whileStopping},
		{"away", s.whileAway}, {"flooded", s.whileFlooded},
	}
	// Each kind comes to its turn, in any order.
	var order []int
	for i := range rounds {
		if len(order) == 0 {
			order = s.rnd.Perm(len(kinds))
		}
		k := kinds[order[0]]
		order = order[1:]
		t.Logf("round %d: %s", i+1, k.name)
		s.ear.silent(alice, "VmStartingUp", "VmStarted", "VmStopping", "VmStopped")
		k.do()
		s.check()
	}
	s.shell.end()
	if s.runs() {
		alice.stop("other")
	}
	s.ear.silent(alice, "VmStartingUp", "VmStarted", "VmStopping", "VmStopped")
	alice.stop("steady")
	s.ear.expect("steady", "VmStopping", "VmStopped")
	b.gone()
}

// With the bus go the identities that it gave: whoever gets a name on the next
// one that somebody had on the last is not taken for the one who had it.
func TestNamesOfAnotherBus(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	had := map[string]bool{}
	// The service's own connection may take some of the first names again.
	for range 10 {
		alice := b.client(testbed.Alice)
		var disk pb.CreateDiskImageResponse
		alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, &disk)
		had[alice.conn.Names()[0]] = true
	}
	b.StopBus()
	if err := b.StartBus(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := b.client(testbed.Bob)
	first.waitService()
	same := 0
	for range 20 {
		bob := b.client(testbed.Bob)
		if !had[bob.conn.Names()[0]] {
			continue
		}
		same++
		var list pb.ListVmDisksSeedResponse
		if bob.must("ListVmDisks", &pb.ListVmDisksRequest{}, &list); len(list.Images) > 0 {
			t.Errorf("bob, who is %s, sees alice's %v", bob.conn.Names()[0], list.Images)
		}
		if err := bob.call("ListVmDisks", &pb.ListVmDisksRequest{CryptohomeId: "64101"}, &list); errorName(err) != accessDenied {
			t.Errorf("bob asks as alice: %v", err)
		}
	}
	if same < 5 {
		t.Errorf("only %d names came again of %v", same, had)
	}
}
