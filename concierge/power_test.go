package concierge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// Suspended VMs stand still, refuse what their guests would have to answer,
// and can be stopped; a guest that cannot prepare is not suspended.
func TestSuspend(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if r, err := b.small(s, "x"); err != nil || !r.Success {
		t.Fatal(r, err)
	}
	suspend := &pb.SuspendVmRequest{Name: "x"}
	if _, err := s.SuspendVm(t.Context(), subject(5), suspend); err != nil {
		t.Errorf("another user's VM of that name is not there, which is a success: %v", err)
	}
	if _, err := s.SuspendVm(t.Context(), alice, suspend); err != nil {
		t.Fatal(err)
	}
	st, _ := s.GetState(t.Context(), alice)
	if st.VMs[0]["status"] != "suspended" {
		t.Errorf("the state says %v", st.VMs[0])
	}
	for name, call := range map[string]func() error{
		"SetUpVmUser": func() error {
			_, err := s.SetUpVmUser(t.Context(), alice, &pb.SetUpVmUserRequest{VmName: "x", Username: "carol"})
			return err
		},
		"ConnectVsock": func() error { _, err := s.ConnectVsock(t.Context(), alice, "x", 8888); return err },
		"ResizeDiskImage": func() error {
			if _, err := s.CreateDiskImage(t.Context(), alice, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, nil); err != nil {
				return err
			}
			_, err := s.ResizeDiskImage(t.Context(), alice, &pb.ResizeDiskImageRequest{VmName: "x", DiskSize: 2 << 20})
			return err
		},
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "suspended") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r, err := s.SyncVmTimes(t.Context(), alice); err != nil || r.Requests != 0 {
		t.Errorf("SyncVmTimes: %v, %v", r, err)
	}
	b.stop(s, "x")
	b.gone()
	log, err := s.GetVmLogs(t.Context(), alice, &pb.GetVmLogsRequest{Name: "x"})
	if err != nil || !strings.Contains(log.Log, "the VM is suspended") {
		t.Errorf("the log: %v, %v", log, err)
	}

	t.Setenv(guestEnv, "sleepless")
	if r, err := b.small(s, "x"); err != nil || !r.Success {
		t.Fatal(r, err)
	}
	if _, err := s.SuspendVm(t.Context(), alice, suspend); err == nil || !strings.Contains(err.Error(), "prepare the guest") {
		t.Errorf("a guest that cannot prepare: %v", err)
	}
	if st, _ := s.GetState(t.Context(), alice); st.VMs[0]["status"] != "running" {
		t.Errorf("the state says %v", st.VMs[0])
	}
	b.stop(s, "x")
}

// A caller that goes away while another one has the VM's turn gets its error
// and leaves the VM as it is.
func TestSuspendWaitsForItsTurn(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if r, err := b.small(s, "x"); err != nil || !r.Success {
		t.Fatal(r, err)
	}
	v, err := s.find(alice, "x")
	if err != nil {
		t.Fatal(err)
	}
	v.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.SuspendVm(ctx, alice, &pb.SuspendVmRequest{Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-v.turn
	if v.isSuspended() {
		t.Error("it is suspended")
	}
	// A resize needs the guest.
	s.mu.Lock()
	v.resizing = true
	s.mu.Unlock()
	if _, err := s.SuspendVm(t.Context(), alice, &pb.SuspendVmRequest{Name: "x"}); err == nil || !strings.Contains(err.Error(), "resized") {
		t.Errorf("during a resize: %v", err)
	}
	b.stop(s, "x")
}

// noticed is a context that tells when somebody first waits for its end.
type noticed struct {
	context.Context
	once    *sync.Once
	waiting chan struct{}
}

func (c noticed) Done() <-chan struct{} {
	c.once.Do(func() { close(c.waiting) })
	return c.Context.Done()
}

// suspendInVain takes a VM's turn and has somebody wait for it.
func (b *bed) suspendInVain(s *Service, name string) (v *vm, failed <-chan error) {
	b.t.Helper()
	v, err := s.find(alice, name)
	if err != nil {
		b.t.Fatal(err)
	}
	v.turn <- struct{}{}
	ctx := noticed{b.t.Context(), new(sync.Once), make(chan struct{})}
	ended := make(chan error)
	go func() {
		_, err := s.SuspendVm(ctx, alice, &pb.SuspendVmRequest{Name: name})
		ended <- err
	}()
	<-ctx.waiting
	return v, ended
}

// Who waits for its turn while the VM is being stopped does not freeze a guest
// that is powering off.
func TestSuspendOfAVMThatIsStopping(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if r, err := b.small(s, "x"); err != nil || !r.Success {
		t.Fatal(r, err)
	}
	v, failed := b.suspendInVain(s, "x")
	asked := func(on bool) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.asked = on
	}
	asked(true)
	<-v.turn
	if err := <-failed; !errors.Is(err, ErrNotRunning) {
		t.Errorf("%v", err)
	}
	if v.isSuspended() {
		t.Error("it is suspended")
	}
	asked(false)
	b.stop(s, "x")
}

// A VM that ends while somebody waits to suspend it is one that does not run.
func TestSuspendOfAVMThatEnds(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	r, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	_, failed := b.suspendInVain(s, "x")
	if err := syscall.Kill(int(r.VmInfo.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	b.gone()
}

// However many ask, one probe at a time finds out the accelerator.
func TestProbesDoNotPileUp(t *testing.T) {
	b := newBed(t)
	b.cfg.Accel = ""
	dir := t.TempDir()
	program, log := filepath.Join(dir, "auberge-vm"), filepath.Join(dir, "runs")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho run >> "+log+"\necho tcg\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.cfg.Launcher = &vmm.Launcher{Program: program}
	s := b.serve()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if r, err := s.GetVmLaunchAllowed(t.Context(), alice, &pb.GetVmLaunchAllowedRequest{}); err != nil || !r.Allowed {
				t.Error(r, err)
			}
		})
	}
	all.Wait()
	if runs, err := os.ReadFile(log); err != nil || string(runs) != "run\n" {
		t.Errorf("%d probes, %v", strings.Count(string(runs), "run"), err)
	}
}

// A VM does not stand still because of a call that has failed.
func TestSuspendWithoutAnAnswer(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	r, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.find(alice, "x")
	if err != nil {
		t.Fatal(err)
	}
	supervisor := v.processes.Supervisor.PID
	if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(supervisor, syscall.SIGCONT) })
	// The supervisor goes on when the call is given up, and on a busy machine
	// its answer may be first: that was no failed call, and is tried again.
	suspend := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		context.AfterFunc(ctx, func() { syscall.Kill(supervisor, syscall.SIGCONT) })
		_, err := s.SuspendVm(ctx, alice, &pb.SuspendVmRequest{Name: "x"})
		return err
	}
	for tries := 0; suspend() == nil; tries++ {
		if tries == 5 {
			t.Fatal("nobody answers, and it is suspended")
		}
		if _, err := s.ResumeVm(t.Context(), alice, &pb.ResumeVmRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ResumeVm(t.Context(), alice, &pb.ResumeVmRequest{Name: "x"}); err != nil {
		t.Error(err)
	}
	await(t, "the hypervisor goes on", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.VmInfo.Pid))
		return err == nil && !strings.Contains(string(stat), ") T ") && !v.machinePaused(t)
	})
	b.stop(s, "x")
}

// machinePaused asks the VM's supervisor.
func (v *vm) machinePaused(t *testing.T) bool {
	t.Helper()
	m, err := vmm.Attach(t.Context(), v.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	return m.FoundPaused()
}

func TestCPUFlaws(t *testing.T) {
	for _, test := range []struct {
		name, l1tf, mds, want string
	}{
		{"a kernel that knows none", "", "", ""},
		{"not affected", "Not affected\n", "Not affected\n", ""},
		{"mitigated", "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable\n", "Mitigation: Clear CPU buffers; SMT Host state unknown\n", ""},
		{"mitigations=off", "Mitigation: PTE Inversion; VMX: vulnerable\n", "Vulnerable; SMT vulnerable\n", "mds: Vulnerable; SMT vulnerable"},
		{"the other one", "Vulnerable\n", "", "l1tf: Vulnerable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"l1tf": test.l1tf, "mds": test.mds} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := cpuFlaw(dir); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
