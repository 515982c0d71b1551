package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// A follower keeps a snapshot up to date by our own signals.
type follower struct {
	t  *testing.T
	c  *client
	ch chan *godbus.Signal
	snapshot
	last uint64
}

func (c *client) follow() *follower {
	c.t.Helper()
	f := &follower{t: c.t, c: c, ch: make(chan *godbus.Signal, 1024)}
	c.conn.Signal(f.ch)
	c.t.Cleanup(func() { c.conn.RemoveSignal(f.ch) })
	f.snapshot = c.state()
	return f
}

// until applies signals until ok likes what there is.
func (f *follower) until(what string, ok func(member string, d map[string]godbus.Variant) bool) map[string]godbus.Variant {
	f.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case s := <-f.ch:
			member, own := strings.CutPrefix(s.Name, dbus.Concierge1Name+".")
			if !own {
				continue
			}
			instance, seq, d := s.Body[0].(string), s.Body[1].(uint64), s.Body[2].(map[string]godbus.Variant)
			if instance != f.instance || seq <= f.sequence {
				continue // of before the snapshot
			}
			if seq <= f.last {
				f.t.Errorf("number %d after %d", seq, f.last)
			}
			f.last = seq
			if member == dbus.VmChanged {
				key := d["owner_id"].Value().(string) + "/" + d["name"].Value().(string)
				f.vms[key] = d
				if f.status(key) == "stopped" {
					delete(f.vms, key)
				}
			}
			if ok(member, d) {
				return d
			}
		case <-timeout.C:
			f.t.Fatalf("%s: nobody said so", what)
		}
	}
}

// A client that takes a snapshot and applies what comes after it knows what
// another snapshot would say.
func TestState(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.start(&pb.StartVmRequest{Name: "first"})
	f, stranger := alice.follow(), bob.follow()
	if f.status("64101/first") != "running" || len(f.vms) != 1 || len(stranger.vms) != 0 {
		t.Fatalf("alice sees %v, bob %v", f.vms, stranger.vms)
	}
	v := f.vms["64101/first"]
	if v["pid"].Value().(uint32) != uint32(alice.info("first").Pid) || v["memory"].Value().(uint64) != 512<<20 ||
		v["cpus"].Value().(uint32) != 1 || !strings.HasPrefix(v["address"].Value().(string), "100.115.") {
		t.Errorf("the VM: %v", v)
	}
	settings := map[string]godbus.Variant{"memory": godbus.MakeVariant(uint64(512))}
	if err := alice.own("ConfigureVm", "second", "label", settings).Err; err != nil {
		t.Fatal(err)
	}
	done := alice.goStart(&pb.StartVmRequest{Name: "second", OwnerId: "label"})
	seen := map[string]bool{}
	op := f.until("the start", func(member string, d map[string]godbus.Variant) bool {
		if member == dbus.OperationChanged {
			if phase, ok := d["phase"]; ok {
				seen[phase.Value().(string)] = true
			}
		}
		return member == dbus.OperationChanged && d["kind"].Value() == "start-vm" && d["status"].Value() == "done"
	})
	if r := <-done; !r.Success {
		t.Fatal(r)
	}
	if !seen["booting"] || !seen["configuring"] || op["name"].Value() != "second" || op["progress"].Value() != uint32(100) {
		t.Errorf("phases %v, at the end %v", seen, op)
	}
	if now := alice.state(); now.status("label/second") != "running" || f.status("label/second") != "running" {
		t.Errorf("followed: %v, snapshot: %v", f.vms, now.vms)
	}
	b.kill2nd(alice, "first")
	f.until("the end", func(string, map[string]godbus.Variant) bool { return f.status("64101/first") == "" })
	if now := alice.state(); len(now.vms) != 1 || len(f.vms) != 1 {
		t.Errorf("followed: %v, snapshot: %v", f.vms, now.vms)
	}

	// Operations are remembered for those who were not there.
	var operations []map[string]godbus.Variant
	if err := b.client(testbed.Alice).own("ListOperations").Store(&operations); err != nil {
		t.Fatal(err)
	}
	if len(operations) != 2 || operations[1]["id"].Value() != op["id"].Value() {
		t.Errorf("operations: %v", operations)
	}
	if err := bob.own("ListOperations").Store(&operations); err != nil || len(operations) != 0 {
		t.Errorf("bob's operations: %v, %v", operations, err)
	}
	if got := len(stranger.ch); got != 0 {
		t.Errorf("bob heard %d signals", got)
	}

	// Another run of the service says that it is one.
	before := alice.state()
	b.restartConcierge()
	if now := alice.state(); now.instance == before.instance || now.status("label/second") != "running" {
		t.Errorf("after a restart: %v", now)
	}
	alice.bare("StopAllVms")
	b.gone()
}

// kill2nd kills the hypervisor of one of several VMs.
func (b *bed) kill2nd(c *client, vm string) {
	b.t.Helper()
	p, err := os.FindProcess(int(c.info(vm).Pid))
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// listenVsock asks for a listener.
func (c *client) listenVsock(vm, owner string, port uint32) (net.Listener, uint32, error) {
	c.t.Helper()
	var fd godbus.UnixFD
	if err := c.own("ListenVsock", vm, owner, port).Store(&fd, &port); err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { l.Close() })
	return l, port, nil
}

// A guest's streams to a port arrive at whoever its owner had listen there.
func TestListenVsock(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.start(&pb.StartVmRequest{Name: "x"})
	m := alice.maitred("x")

	// Mount9P is a way to have the guest dial; what it says first is known.
	arrives := func(l net.Listener, port uint32) {
		t.Helper()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			m.Mount9P(ctx, &vmtoolspb.Mount9PRequest{Port: port, Target: "/mnt/shared"})
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		hello := make([]byte, 21)
		if _, err := io.ReadFull(c, hello); err != nil || !strings.HasSuffix(string(hello), "9P2000.L") {
			t.Errorf("the guest says %q, %v", hello, err)
		}
		c.Close()
		<-ended
	}
	l, port, err := alice.listenVsock("x", "", 5000)
	if err != nil || port != 5000 {
		t.Fatal(port, err)
	}
	arrives(l, port)
	if _, _, err := alice.listenVsock("x", "", 5000); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the same port again: %v", err)
	}
	other, any, err := alice.listenVsock("x", "", 0)
	if err != nil || any == 5000 || any == 0 {
		t.Fatal(any, err)
	}
	arrives(other, any)
	for _, own := range []uint32{7777, 9999} {
		var e godbus.Error
		if _, _, err := alice.listenVsock("x", "", own); !errors.As(err, &e) || e.Name != dbus.ErrorInvalidArgument {
			t.Errorf("port %d: %v", own, err)
		}
	}
	if _, _, err := alice.listenVsock("nobody", "", 0); err == nil {
		t.Error("listened for a VM that does not run")
	}
	if _, _, err := bob.listenVsock("x", "64101", 0); err == nil || !strings.Contains(err.Error(), "AccessDenied") && !strings.Contains(err.Error(), "denied") {
		t.Errorf("bob listens for alice's VM: %v", err)
	}
	// The listener is its holder's, whatever becomes of the service.
	b.restartConcierge()
	m = alice.maitred("x")
	arrives(l, port)
	// Closed, it frees its port: when a process that another test has just begun
	// does not have it any more, either.
	l.Close()
	var again net.Listener
	eventually(t, "its port is free", func() (string, bool) {
		again, port, err = alice.listenVsock("x", "", 5000)
		return "in use", err == nil
	})
	arrives(again, port)
	alice.stop("x")
	b.gone()
}

// The file system of a running VM and the disk beneath it change together.
func TestResize(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	resize := func(c *client, size uint64) *pb.ResizeDiskImageResponse {
		t.Helper()
		var r pb.ResizeDiskImageResponse
		c.must("ResizeDiskImage", &pb.ResizeDiskImageRequest{VmName: "x", DiskSize: size}, &r)
		return &r
	}
	if r := resize(alice, 1<<30); r.Status != pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST {
		t.Errorf("no disk: %v", r)
	}
	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 30}, &disk)
	size := func() int64 {
		t.Helper()
		fi, err := os.Stat(disk.DiskPath)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	// Without the VM it can only grow.
	if r := resize(alice, 1536<<20+1); r.Status != pb.DiskImageStatus_DISK_STATUS_RESIZED || size() != 1536<<20 {
		t.Errorf("grown without the VM: %v, %d bytes", r, size())
	}
	if r := resize(alice, 1<<30); r.Status != pb.DiskImageStatus_DISK_STATUS_FAILED || size() != 1536<<20 || !strings.Contains(r.FailureReason, "start") {
		t.Errorf("shrunk without the VM: %v, %d bytes", r, size())
	}

	alice.start(&pb.StartVmRequest{Name: "x", StartTermina: true, Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}})
	alice.rootShell("x", "dd if=/dev/urandom of=/mnt/stateful/file bs=1M count=64 status=none; sync")
	sum := alice.rootShell("x", "sha256sum /mnt/stateful/file")
	fs := func() string {
		t.Helper()
		return alice.rootShell("x", "df -B1 --output=size /mnt/stateful | tail -n 1")
	}
	if got := fs(); got != "1610612736" {
		t.Errorf("the file system has %s bytes", got)
	}
	progress := make(chan *godbus.Signal, 256)
	alice.conn.Signal(progress)
	// ended waits for the last word about an operation.
	ended := func(id string) *pb.DiskImageStatusResponse {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case s := <-progress:
				if s.Name != dbus.ConciergeInterface+"."+dbus.DiskImageProgress {
					continue
				}
				var p pb.DiskImageStatusResponse
				unmarshal(t, s.Body[0].([]byte), &p)
				if p.CommandUuid == id && p.Status != pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS {
					return &p
				}
			case <-timeout:
				t.Fatal("the operation does not end")
			}
		}
	}
	for _, to := range []uint64{3 << 30, 1 << 30} {
		r := resize(alice, to)
		if r.Status != pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS || r.CommandUuid == "" {
			t.Fatalf("to %d: %v", to, r)
		}
		var foreign pb.DiskImageStatusResponse
		if bob.must("DiskImageStatus", &pb.DiskImageStatusRequest{CommandUuid: r.CommandUuid}, &foreign); foreign.Status != pb.DiskImageStatus_DISK_STATUS_FAILED {
			t.Errorf("bob sees alice's operation: %v", &foreign)
		}
		end := ended(r.CommandUuid)
		if end.Status != pb.DiskImageStatus_DISK_STATUS_RESIZED || end.Progress != 100 {
			t.Fatalf("to %d: %v", to, end)
		}
		for range 2 { // asking does not make it forgotten
			var st pb.DiskImageStatusResponse
			if alice.must("DiskImageStatus", &pb.DiskImageStatusRequest{CommandUuid: r.CommandUuid}, &st); !proto.Equal(&st, end) {
				t.Errorf("the status is %v, the signal said %v", &st, end)
			}
		}
		if uint64(size()) != to {
			t.Errorf("the image has %d bytes, not %d", size(), to)
		}
		if got := alice.rootShell("x", "df -B1 --output=size /mnt/stateful | tail -n 1; cat /sys/block/$(basename $(findmnt -no SOURCE /mnt/stateful))/size"); got != sizes(to) {
			t.Errorf("file system and device have %q, want %q", got, sizes(to))
		}
		if got := alice.rootShell("x", "sha256sum /mnt/stateful/file"); got != sum {
			t.Errorf("the file has changed: %s, %s", got, sum)
		}
	}

	// The listing knows what only the guest does.
	var list pb.ListVmDisksResponse
	alice.must("ListVmDisks", &pb.ListVmDisksRequest{VmName: "x"}, &list)
	if len(list.Images) != 1 || list.Images[0].MinSize < 64<<20 || list.Images[0].MinSize > 1<<30 ||
		list.Images[0].AvailableSpace == 0 || list.Images[0].AvailableSpace > 1<<30 || !list.Images[0].UserChosenSize {
		t.Errorf("ListVmDisks: %v", &list)
	}
	// What the data does not fit is refused, and nothing has changed.
	if r := resize(alice, 2<<20); r.Status == pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS {
		if end := ended(r.CommandUuid); end.Status != pb.DiskImageStatus_DISK_STATUS_FAILED || end.FailureReason == "" {
			t.Errorf("to 2 MiB: %v", end)
		}
	}
	if size() != 1<<30 || alice.rootShell("x", "sha256sum /mnt/stateful/file") != sum {
		t.Errorf("after the refusal the image has %d bytes", size())
	}
	alice.stop("x")
	b.gone()
}

// sizes is what df and the kernel say of a device.
func sizes(n uint64) string { return itoa(int(n)) + "\n" + itoa(int(n/512)) }

// What the host asks the guest, and the guest about itself.
func TestGuestsFacts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x", VmType: pb.VmInfo_BAGUETTE, VmUsername: "carol"})

	var kernel pb.GetVmEnterpriseReportingInfoResponse
	alice.must("GetVmEnterpriseReportingInfo", &pb.GetVmEnterpriseReportingInfoRequest{VmName: "x"}, &kernel)
	if got := alice.vsh("x", "uname", "-rv"); !kernel.Success || kernel.VmKernelVersion != got {
		t.Errorf("%v, uname says %q", &kernel, got)
	}
	alice.must("GetVmEnterpriseReportingInfo", &pb.GetVmEnterpriseReportingInfoRequest{VmName: "y"}, &kernel)
	if kernel.Success || kernel.FailureReason == "" {
		t.Errorf("a VM that is not there: %v", &kernel)
	}

	uid := uint32(1234)
	var user pb.SetUpVmUserResponse
	alice.must("SetUpVmUser", &pb.SetUpVmUserRequest{VmName: "x", Username: "dave", Uid: &uid, GroupNames: []string{"users"}}, &user)
	if !user.Success || user.Username != "dave" {
		t.Fatal(&user)
	}
	if got := alice.rootShell("x", "id -u dave; id -Gn dave"); !strings.HasPrefix(got, "1234\n") || !strings.Contains(got, "users") {
		t.Errorf("dave is %q", got)
	}
	alice.must("SetUpVmUser", &pb.SetUpVmUserRequest{VmName: "x", Username: "Not A Name"}, &user)
	if user.Success || user.FailureReason == "" {
		t.Errorf("a name that is none: %v", &user)
	}

	var allowed pb.GetVmLaunchAllowedResponse
	alice.must("GetVmLaunchAllowed", &pb.GetVmLaunchAllowedRequest{}, &allowed)
	if !allowed.Allowed { // guests are emulated here
		t.Errorf("GetVmLaunchAllowed: %v", &allowed)
	}

	// A guest without containers has a token for its agents.
	if got := alice.rootShell("x", "wc -c < /dev/.container_token"); got != "36" {
		t.Errorf("the token has %s bytes", got)
	}
	alice.stop("x")
}
