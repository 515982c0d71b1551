package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// supervisorOf is the process that owns a hypervisor.
func (b *bed) supervisorOf(hypervisor int32) int {
	b.t.Helper()
	for _, line := range statusLines(b.t, int(hypervisor)) {
		if line[0] == "PPid:" {
			pid, err := strconv.Atoi(line[1])
			if err != nil {
				b.t.Fatal(err)
			}
			return pid
		}
	}
	b.t.Fatalf("process %d has no parent", hypervisor)
	return 0
}

// stopped says whether every thread of a process stands still.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, stat := range threads {
		text, rerr := os.ReadFile(stat)
		_, rest, _ := strings.Cut(string(text), ") ")
		if rerr != nil || !strings.HasPrefix(rest, "T") {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

// One supervisor that does not answer costs the other VMs nothing, and its own
// VM nothing that it has.
func TestSupervisorThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "stuck", DiskSize: 64 << 20}, &disk)
	disks := []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}
	stuck := alice.start(&pb.StartVmRequest{Name: "stuck", Disks: disks})
	good := alice.start(&pb.StartVmRequest{Name: "good"})
	supervisor := b.supervisorOf(stuck.Pid)
	hold := func() {
		t.Helper()
		b.concierge.Stop(syscall.SIGKILL)
		if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Its threads stop one by one, and on a busy machine not at once.
		b.await("the supervisor stands still", func() bool { return stopped(supervisor) })
		b.startConcierge()
		if i := alice.info("stuck"); i.GetStatus() != pb.VmStatus_VM_STATUS_FAILURE || i.GetPid() != stuck.Pid || i.GetCid() != stuck.Cid {
			t.Errorf("the VM that does not answer: %v", i)
		}
		if i := alice.info("good"); i.GetPid() != good.Pid || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
			t.Errorf("the other VM: %v", i)
		}
	}
	hold()
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "stuck"}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "cannot be taken over") {
		t.Errorf("started again: %v", &resp)
	}
	alice.must("StartVm", &pb.StartVmRequest{Name: "thief", Disks: disks}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "in use") {
		t.Errorf("its disk was given away: %v", &resp)
	}
	if err := syscall.Kill(supervisor, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.await("the VM is taken over", func() bool { return alice.info("stuck").GetStatus() == pb.VmStatus_VM_STATUS_RUNNING })
	if i := alice.info("stuck"); i.Pid != stuck.Pid || i.Cid != stuck.Cid {
		t.Errorf("found %v, was %v", i, stuck)
	}
	if got := alice.vsh("stuck", "echo", "here"); got != "here" {
		t.Errorf("the VM that was found again says %q", got)
	}
	ear := alice.listen()
	hold()
	alice.stop("stuck")
	ear.expect("stuck", "VmStopping", "VmStopped")
	alice.stop("good")
	b.gone()
}

// onSmall restarts the service with an empty file system, which can hold so
// many bytes, in place of one of its directories.
func (b *bed) onSmall(dir string, size int, args ...string) {
	b.t.Helper()
	b.concierge.Stop(syscall.SIGTERM)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		b.t.Fatal(err)
	}
	options := fmt.Sprintf("mode=0755,size=%d,uid=%d,gid=%d", size, st.Uid, st.Gid)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	b.startConcierge(args...)
}

// fill takes all space of a file system, until it is given back.
func (b *bed) fill(dir string) (free func()) {
	b.t.Helper()
	path := filepath.Join(dir, "filling")
	f, err := os.Create(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if !strings.Contains(err.Error(), "no space") {
		b.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			b.t.Fatal(err)
		}
	}
}

// With the runtime directory full nothing can be started, and that is all.
func TestRuntimeDirFull(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.onSmall(b.RuntimeDir, 256<<10)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	first := alice.start(&pb.StartVmRequest{Name: "x"})
	ear.expect("x", "VmStartingUp", "VmStarted")
	free := b.fill(b.RuntimeDir)
	alice.small("y")
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "y"}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "no space left") {
		t.Errorf("StartVm: %v", &resp)
	}
	ear.silent(alice)
	if n := len(b.leftovers()); n != 2 {
		t.Errorf("beside one VM's there is %v", b.leftovers())
	}
	b.concierge.Stop(syscall.SIGKILL)
	b.startConcierge()
	if i := alice.info("x"); i.GetPid() != first.Pid || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("after a restart: %v", i)
	}
	if got := alice.vsh("x", "echo", "here"); got != "here" {
		t.Errorf("x says %q", got)
	}
	alice.stop("x")
	ear.expect("x", "VmStopping", "VmStopped")
	b.gone()
	free()
	alice.start(&pb.StartVmRequest{Name: "y"})
	alice.stop("y")
	b.gone()
}

// With the state directory full VMs live on, and what cannot be stored is
// refused with the reason.
func TestStateDirFull(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.onSmall(b.StateDir, 256<<10)
	alice := b.client(testbed.Alice)
	first := alice.start(&pb.StartVmRequest{Name: "x"})
	free := b.fill(b.StateDir)
	settings := map[string]godbus.Variant{"cpus": godbus.MakeVariant(uint32(1))}
	if err := alice.own("ConfigureVm", "y", "", settings).Err; err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("ConfigureVm: %v", err)
	}
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "y", DiskSize: 1 << 20,
		AllocationType: pb.DiskImageAllocationType_DISK_ALLOCATION_TYPE_PREALLOCATE}, &disk)
	if disk.Status != pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE || !strings.Contains(disk.FailureReason, "no space left") {
		t.Errorf("CreateDiskImage: %v", &disk)
	}
	b.concierge.Stop(syscall.SIGKILL)
	b.startConcierge()
	if i := alice.info("x"); i.GetPid() != first.Pid || i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("after a restart: %v", i)
	}
	alice.stop("x")
	b.gone()
	// What was stored before is whole.
	free()
	alice.start(&pb.StartVmRequest{Name: "x"})
	alice.stop("x")
	for dir, want := range map[string]int{"settings": 1, "disks": 0} {
		if left, err := filepath.Glob(filepath.Join(b.StateDir, dir, "64101", "*")); err != nil || len(left) != want {
			t.Errorf("in %s there is %v", dir, left)
		}
	}
}

// What the VMs' user has put into a VM's directory, so that nobody else may
// look into it, goes with the VM all the same.
func TestPlantedDirectories(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	plant := func() {
		t.Helper()
		dirs, err := filepath.Glob(filepath.Join(b.RuntimeDir, "vms", "*"))
		if err != nil || len(dirs) != 1 {
			t.Fatalf("VMs: %v, %v", dirs, err)
		}
		// A service that is not root meets the VMs' user in its own group.
		user := testbed.User{Name: testbed.VMs.Name, UID: testbed.VMs.UID, GID: testbed.Service.GID}
		cmd := b.Command(user, "/bin/sh", "-c", `mkdir -m 700 "$0/a" && mkdir -p "$0/a/b/c" && touch "$0/a/b/c/d" && ln -s / "$0/a/root" && chmod 0 "$0/a/b" "$0/a"`, dirs[0])
		if out, errs, err := output(cmd); err != nil {
			t.Fatalf("%v: %s%s", err, out, errs)
		}
	}
	alice.start(&pb.StartVmRequest{Name: "x"})
	plant()
	alice.stop("x")
	b.gone()
	// The same when nobody is there at the VM's end.
	alice.start(&pb.StartVmRequest{Name: "x"})
	plant()
	b.concierge.Stop(syscall.SIGKILL)
	b.kill("auberge-vm")
	b.startConcierge()
	b.gone()
}
