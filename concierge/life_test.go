package concierge

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestLife(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	resp, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	i := resp.VmInfo
	if !resp.Success || i.Status != pb.VmStatus_VM_STATUS_RUNNING || i.Cid != 32 || i.Pid == 0 || i.AllocatedMemory != minMemoryMiB<<20 ||
		i.Ipv4Address != maitred.NetworkOrder(DefaultPool.Addr().Next().Next()) {
		t.Errorf("started: %v", resp)
	}
	if got, want := b.events.take(), []string{"VmStartingUp x", "VmStarted x"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	again, err := b.small(s, "x")
	if err != nil || again.VmInfo.Pid != i.Pid {
		t.Errorf("started again: %v, %v", again, err)
	}
	b.stop(s, "x")
	if got, want := b.events.take(), []string{"VmStopping x", "VmStopped x"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.gone()
}

// A start that fails says why, with the guest's words, and leaves nothing.
func TestStartFails(t *testing.T) {
	for name, test := range map[string]struct {
		hypervisor, guest string
		want              []string
	}{
		"the hypervisor ends":  {hypervisor: "print:\x1b[31mpanic exit:3", want: []string{"exit status 3", "console:\npanic"}},
		"the guest refuses":    {hypervisor: "print:booted", guest: "refuses", want: []string{"there is no such interface", "console:\nbooted"}},
		"a console of nothing": {guest: "refuses", want: []string{"wrote nothing to its console"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(hypervisorEnv, test.hypervisor)
			t.Setenv(guestEnv, test.guest)
			if test.hypervisor != "" && test.guest == "" {
				t.Setenv(guestEnv, "mute")
			}
			b := newBed(t)
			s := b.serve()
			before := len(s.nets.used)
			_, err := b.small(s, "x")
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range test.want {
				// One that ends before it is asked has no console to show.
				if !strings.Contains(err.Error(), w) && !(strings.HasPrefix(w, "console") && !strings.Contains(err.Error(), "before its agent")) {
					t.Errorf("the reason is %q, want %q in it", err, w)
				}
			}
			if got, want := b.events.take(), []string{"VmStartingUp x", "VmStopped x"}; !slices.Equal(got, want) {
				t.Errorf("signals %q, want %q", got, want)
			}
			if len(s.nets.used) != before {
				t.Errorf("%d networks are still used", len(s.nets.used))
			}
			b.gone()
		})
	}
}

func TestGuestThatIsMute(t *testing.T) {
	t.Setenv(guestEnv, "mute")
	b := newBed(t)
	s := b.serve()
	_, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: "x", Timeout: 1}, nil)
	if err == nil || !strings.Contains(err.Error(), "did not report within 1s") {
		t.Errorf("the reason is %v", err)
	}
	b.gone()
}

// A stop ends a start, and both calls are answered.
func TestStopEndsStart(t *testing.T) {
	t.Setenv(guestEnv, "mute")
	b := newBed(t)
	s := b.serve()
	started := make(chan error, 1)
	go func() {
		_, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: "x"}, nil)
		started <- err
	}()
	for !slices.Contains(b.events.take(), "VmStartingUp x") { // nothing else announces it
	}
	b.stop(s, "x")
	if err := <-started; !errors.Is(err, errStopped) {
		t.Errorf("StartVm: %v", err)
	}
	b.gone()
}

// VMs outlive the service, and the next one has all of them.
func TestRestart(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	first, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	b.events.take()
	s = b.serve()
	info, err := s.GetVmInfo(t.Context(), alice, &pb.GetVmInfoRequest{Name: "x"})
	if err != nil || info.VmInfo.Pid != first.VmInfo.Pid || info.VmInfo.Cid != first.VmInfo.Cid || info.VmInfo.Ipv4Address != first.VmInfo.Ipv4Address ||
		info.VmInfo.AllocatedMemory != first.VmInfo.AllocatedMemory || info.VmInfo.Status != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("found %v, %v; want %v", info, err, first.VmInfo)
	}
	second, err := b.small(s, "y")
	if err != nil || second.VmInfo.Cid == first.VmInfo.Cid || second.VmInfo.Ipv4Address == first.VmInfo.Ipv4Address {
		t.Errorf("a second VM: %v, %v", second, err)
	}
	// A service that ends lets go of the VMs, all of them.
	s.Close()
	// Others in this process (tests before this one) may still let go of some,
	// or open one; what each service leaves behind adds up.
	const services = 4
	before := openFiles(t)
	for range services {
		s = b.serve()
		s.Close()
	}
	if after := openFiles(t); after >= before+services {
		t.Errorf("%d descriptors before %d services, %d after", before, services, after)
	}
	s = b.serve()
	b.stop(s, "x")
	b.stop(s, "y")
	b.gone()
}

// A service that ends while VMs are started leaves each either running or
// gone, and waits for none that begins too late.
func TestCloseWhileStarting(t *testing.T) {
	b := newBed(t)
	memory := uint64(minMemoryMiB)
	for range 3 {
		s := b.serve()
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			if err := s.ConfigureVm(t.Context(), alice, name, Settings{MemoryMiB: &memory}); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
				defer cancel()
				if resp, err := s.StartVm(ctx, alice, &pb.StartVmRequest{Name: name}, nil); err == nil && !resp.Success {
					t.Errorf("%s: %v", name, resp)
				}
			})
		}
		s.Close()
		wg.Wait()
		if _, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: "late"}, nil); err == nil {
			t.Error("a closed service starts VMs")
		}
	}
	s := b.serve()
	for _, name := range []string{"a", "b"} {
		b.stop(s, name)
	}
	b.gone()
}

// A service that ends does not wait for a guest that takes its time to shut
// down, and the VM is still known to the next.
func TestCloseWhileStopping(t *testing.T) {
	t.Setenv(guestEnv, "stays")
	b := newBed(t)
	s := b.serve()
	first, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() {
		_, err := s.StopVm(ctx, alice, &pb.StopVmRequest{Name: "x"})
		stopped <- err
	}()
	for !slices.Contains(b.events.take(), "VmStopping x") { // nothing else announces it
	}
	s.Close()
	select {
	case err := <-stopped:
		t.Errorf("StopVm has an end: %v", err)
	default:
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("StopVm: %v", err)
	}
	s = b.serve()
	info, err := s.GetVmInfo(t.Context(), alice, &pb.GetVmInfoRequest{Name: "x"})
	if err != nil || info.VmInfo.Pid != first.VmInfo.Pid {
		t.Fatalf("the next service has %v, %v", info, err)
	}
	s.vms[keyOf(alice.Owner, "x")].machine.Kill()
	b.awaitGone(s)
	b.gone()
}

// slowToEnd makes hypervisors wait at their end until they are let go.
func slowToEnd(t *testing.T) (asked func(), letGo func()) {
	t.Helper()
	dir, asked, letGo := newGate(t)
	t.Setenv(hypervisorEnv, "slow:"+dir+" print:ready")
	return asked, letGo
}

// slowTermina makes guests wait in StartTermina until they are let go.
func slowTermina(t *testing.T) (asked func(), letGo func()) {
	t.Helper()
	dir, asked, letGo := newGate(t)
	t.Setenv(guestEnv, "slow:"+dir)
	return asked, letGo
}

// newGate makes a directory in which another process waits; asked waits for
// that, and letGo ends it.
func newGate(t *testing.T) (dir string, asked func(), letGo func()) {
	t.Helper()
	dir = t.TempDir()
	for _, f := range []string{"asked", "go"} {
		if err := syscall.Mkfifo(filepath.Join(dir, f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	meet := func(name string, flag int) func() {
		return func() {
			if err := rendezvous(filepath.Join(dir, name), flag); err != nil {
				t.Error(err)
			}
		}
	}
	return dir, meet("asked", os.O_RDONLY), meet("go", os.O_WRONLY)
}

// A start that a service did not finish is undone by the next. Who asks for
// the VM meanwhile gets a new one, not what is left of the old.
func TestRestartDuringStart(t *testing.T) {
	asked, letGo := slowToEnd(t)
	b := newBed(t)
	s := b.serve()
	first, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	v := s.vms[keyOf(alice.Owner, "x")]
	for {
		if console, err := v.machine.Console(t.Context()); err != nil || len(console) > 0 {
			break
		}
	}
	s.Close()
	// As if it had been killed before the VM was up.
	if err := s.writeRecord(v, recordStarting); err != nil {
		t.Fatal(err)
	}
	b.events.take()
	s = b.serve()
	asked()
	t.Setenv(hypervisorEnv, "")
	second := make(chan *pb.StartVmResponse, 1)
	go func() {
		resp, err := b.small(s, "x")
		if err != nil {
			t.Error(err)
		}
		second <- resp
	}()
	select {
	case resp := <-second:
		t.Fatalf("while the old VM ends, StartVm says %v", resp)
	case <-time.After(50 * time.Millisecond):
	}
	letGo()
	if resp := <-second; resp != nil && resp.VmInfo.Pid == first.VmInfo.Pid {
		t.Errorf("the old VM was handed out: %v", resp)
	}
	if got, want := b.events.take(), []string{"VmStopped x", "VmStartingUp x", "VmStarted x"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.stop(s, "x")
	b.gone()
}
