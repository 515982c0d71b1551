package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
	"github.com/auberge-vm/auberge/vmm/crash"
)

// crashBed is a bed whose vm_concierge can be made to die at a crash point.
func crashBed(t *testing.T) *bed {
	t.Helper()
	b := newBed(t)
	// In the bed's directory, which the service's user can reach.
	b.Concierge = filepath.Join(b.Dir, "vm_concierge.crashpoints")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "crashpoints", "-o", b.Concierge, "../../daemon/vm_concierge")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build vm_concierge with crash points: %v\n%s", err, out)
	}
	t.Cleanup(func() { os.Remove(b.Concierge) })
	return b
}

// crash has vm_concierge die at a point of what is done meanwhile, and starts
// the next one.
func (b *bed) crash(at string, do func()) {
	b.t.Helper()
	b.die(at, do)
	b.startConcierge()
}

// die has vm_concierge die at a point of what is done meanwhile.
func (b *bed) die(at string, do func()) {
	b.t.Helper()
	b.concierge.Stop(syscall.SIGTERM)
	b.Env = []string{crash.Env + "=" + at}
	b.startConcierge()
	b.Env = nil
	done := make(chan struct{})
	go func() { // the call has no answer but that nobody answers
		defer close(done)
		do()
	}()
	select {
	case <-b.concierge.Done():
		<-done
	case <-time.After(patience):
		b.t.Fatalf("vm_concierge never came to %s", at)
	}
	b.killed(at)
}

// dieAtStart has vm_concierge die at a point of what it finds to do when it is
// started.
func (b *bed) dieAtStart(at string) {
	b.t.Helper()
	b.Env = []string{crash.Env + "=" + at}
	defer func() { b.Env = nil }()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	// It may come as far as being ready, or not.
	d, err := b.StartConcierge(ctx, "--accel", "tcg")
	if d == nil {
		b.t.Fatal(err)
	}
	b.concierge = d
	select {
	case <-d.Done():
	case <-ctx.Done():
		b.t.Fatalf("vm_concierge never came to %s", at)
	}
	b.killed(at)
}

// killed checks that it was a crash point that ended vm_concierge.
func (b *bed) killed(at string) {
	b.t.Helper()
	if ws, ok := b.concierge.Cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		b.t.Fatalf("at %s vm_concierge ended by itself: %v", at, b.concierge.Cmd.ProcessState)
	}
}

// await looks for something that nothing announces.
func (b *bed) await(what string, done func() bool) {
	b.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("in vain: %s", what)
		}
	}
}

// awaitGone waits until nothing is left of any VM: neither process nor
// directory nor record, nor a place in a list.
func (b *bed) awaitGone(c *client) {
	b.t.Helper()
	b.await("wait until nothing is left", func() bool {
		var list pb.ListVmsResponse
		c.must("ListVms", &pb.ListVmsRequest{}, &list)
		return len(b.leftovers()) == 0 && len(b.Processes()) == 0 && len(list.Vms) == 0
	})
}

func (b *bed) leftovers() []string {
	var left []string
	for _, d := range []string{"vms", "records"} {
		entries, err := os.ReadDir(filepath.Join(b.RuntimeDir, d))
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, d+"/"+e.Name())
		}
	}
	return left
}

// runs checks that a VM is known as the one that runs, and can be reached.
func (b *bed) runs(c *client, name string) *pb.VmInfo {
	b.t.Helper()
	pids := b.process("qemu-system")
	i := c.info(name)
	if len(pids) != 1 || int(i.GetPid()) != pids[0] || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		b.t.Fatalf("processes %v run, the service knows %v", pids, i)
	}
	if err := c.own("ConnectVsock", name, "", uint32(9001)).Err; err != nil {
		b.t.Fatal(err)
	}
	return i
}

// untilStopped hears signals until a VM is said to have stopped.
func (e *ear) untilStopped(vm string) {
	e.t.Helper()
	for {
		if h := e.next(); h.name == "VmStopped" && h.vm == vm {
			return
		}
	}
}

// vm_concierge dies at each point of its book-keeping: afterwards a VM runs
// and is known, or nothing of it is left. Each case starts the same VM again,
// which the one before must not keep from it.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	b := crashBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	alice.small("x")
	seen := map[crash.Point]bool{}
	try := func(at string, do, then func()) {
		t.Helper()
		point, _, _ := strings.Cut(at, "#")
		seen[crash.Point(point)] = true
		before := time.Now()
		// Who does not know how far the last one came tells some things twice.
		ear.silent(alice, "VmStartingUp", "VmStarted", "VmStopping", "VmStopped")
		b.crash(at, do)
		then()
		t.Logf("%s: %v", at, time.Since(before).Round(time.Millisecond))
	}
	start := func() { alice.call("StartVm", &pb.StartVmRequest{Name: "x"}, &pb.StartVmResponse{}) }
	// A kernel that panics at once brings the VM to its end by itself.
	fail := func() {
		alice.call("StartVm", &pb.StartVmRequest{Name: "x", KernelParams: []string{"rdinit=/nothing", "init=/nothing"}}, &pb.StartVmResponse{})
	}
	stop := func() { alice.call("StopVm", &pb.StopVmRequest{Name: "x"}, &pb.SuccessFailureResponse{}) }
	gone := func() {
		t.Helper()
		b.awaitGone(alice)
	}
	told := func() {
		t.Helper()
		ear.untilStopped("x")
		b.awaitGone(alice)
	}
	var vm *pb.VmInfo
	runs := func() {
		t.Helper()
		i := b.runs(alice, "x")
		if vm != nil && (i.Pid != vm.Pid || i.Cid != vm.Cid) {
			t.Errorf("it was %v and is %v", vm, i)
		}
		vm = i
	}

	// Before its record is there nobody has heard of the VM.
	for _, at := range []string{"dir-made", "dir-shared", "record-written"} {
		try(at, start, gone)
		ear.silent(alice)
	}
	for _, at := range []string{"record-stored", "start-announced", "before-supervisor", "supervisor-forked", "launch-sent",
		"launched", "record-written#2", "record-stored#2", "guest-ready", "guest-configured", "record-written#3"} {
		try(at, start, told)
	}
	for _, at := range []string{"before-removal", "dir-removed", "stopped-announced"} {
		try(at, fail, told)
	}
	try("record-removed", fail, gone)
	// The one that clears up after a crash dies of it too.
	for _, at := range []string{"before-removal", "dir-removed", "stopped-announced", "record-removed"} {
		ear.silent(alice, "VmStartingUp", "VmStopped")
		b.die("launched", start)
		b.dieAtStart(at)
		b.startConcierge()
		told()
	}
	try("record-stored#3", start, runs)
	try("stop-announced", stop, runs)
	try("powered-off", stop, told)
	vm = nil
	try("started", start, runs)
	alice.stop("x")
	b.gone()

	crashSettings(b, alice, try)
	crashDisks(b, alice, try)
	for _, p := range crash.All {
		if !seen[p] {
			t.Errorf("no case for the point %s", p)
		}
	}
}

// crashSettings dies while settings are stored: they are the old or the new.
func crashSettings(b *bed, c *client, try func(at string, do, then func())) {
	for _, test := range []struct {
		at     string
		stored bool
	}{{"settings-dir-made", false}, {"settings-written", false}, {"settings-stored", true}} {
		dir := filepath.Join(b.StateDir, "settings/64101")
		if err := os.RemoveAll(dir); err != nil {
			b.t.Fatal(err)
		}
		settings := map[string]godbus.Variant{"cpus": godbus.MakeVariant(uint32(1))}
		try(test.at, func() { c.own("ConfigureVm", "x", "", settings) }, func() {
			entries, err := os.ReadDir(dir)
			if err != nil || (len(entries) == 1) != test.stored || len(entries) > 1 {
				b.t.Errorf("at %s: %v, %v", test.at, entries, err)
			}
			if err := c.own("ConfigureVm", "x", "", settings).Err; err != nil {
				b.t.Errorf("after %s: %v", test.at, err)
			}
		})
	}
}

// crashDisks dies while a disk is made or removed: it is whole or not there.
func crashDisks(b *bed, c *client, try func(at string, do, then func())) {
	create := func() {
		c.call("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 30}, &pb.CreateDiskImageResponse{})
	}
	path := filepath.Join(b.StateDir, "disks/64101/eA==.img")
	exists := func(at string, want bool) {
		fi, err := os.Stat(path)
		if (err == nil) != want || err == nil && fi.Size() != 1<<30 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.t.Errorf("at %s: %v, %v", at, fi, err)
		}
		if all, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(all) > 1 || len(all) == 1 && !want {
			b.t.Errorf("at %s: the store has %v", at, all)
		}
	}
	try("store-made", create, func() { exists("store-made", false) })
	try("disk-made", create, func() { exists("disk-made", false) })
	try("disk-linked", create, func() { exists("disk-linked", true) })
	destroy := func() {
		c.call("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: "x"}, &pb.DestroyDiskImageResponse{})
	}
	try("disk-removed", destroy, func() { exists("disk-removed", false) })
}
