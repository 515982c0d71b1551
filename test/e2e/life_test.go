package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// small gives a VM the memory that a test needs and no more.
func (c *client) small(name string) {
	c.t.Helper()
	settings := map[string]godbus.Variant{"memory": godbus.MakeVariant(uint64(512)), "cpus": godbus.MakeVariant(uint32(1))}
	if err := c.own("ConfigureVm", name, "", settings).Err; err != nil {
		c.t.Fatal(err)
	}
}

// terminaStatus is that of a VM with containers where there is no vm_cicerone
// to hear that they can be used: an image without containers has nothing to
// wait for.
func terminaStatus(t *testing.T) pb.VmStatus {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(image, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Features []string `json:"features"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(m.Features, "tremplin") {
		return pb.VmStatus_VM_STATUS_STARTING
	}
	return pb.VmStatus_VM_STATUS_RUNNING
}

// start starts a small VM that must come up.
func (c *client) start(req *pb.StartVmRequest) *pb.VmInfo {
	c.t.Helper()
	c.small(req.Name)
	var resp pb.StartVmResponse
	c.must("StartVm", req, &resp)
	want := pb.VmStatus_VM_STATUS_RUNNING
	if req.StartTermina {
		want = terminaStatus(c.t)
	}
	if !resp.Success || resp.Status != want {
		c.t.Fatalf("StartVm: %v", &resp)
	}
	return resp.VmInfo
}

func (c *client) stop(name string) {
	c.t.Helper()
	var resp pb.SuccessFailureResponse
	c.must("StopVm", &pb.StopVmRequest{Name: name}, &resp)
	if !resp.Success {
		c.t.Fatalf("StopVm: %v", &resp)
	}
}

// info returns what GetVmInfo says, nothing when there is no such VM.
func (c *client) info(name string) *pb.VmInfo {
	c.t.Helper()
	var resp pb.GetVmInfoResponse
	c.must("GetVmInfo", &pb.GetVmInfoRequest{Name: name}, &resp)
	return resp.VmInfo
}

// process finds the processes of a bed's VMs that run a program.
func (b *bed) process(program string) []int {
	var found []int
	for _, pid := range b.Processes() {
		exe, _ := os.Readlink("/proc/" + itoa(pid) + "/exe")
		args, _ := os.ReadFile("/proc/" + itoa(pid) + "/cmdline")
		// One that only says its version is no part of the VM, and one that has no
		// arguments, as it begins or ends, may be such a one.
		version := len(args) == 0 || strings.HasSuffix(string(args), "\x00--version\x00")
		if strings.HasPrefix(filepath.Base(exe), program) && !version {
			found = append(found, pid)
		}
	}
	return found
}

func (b *bed) kill(program string) {
	b.t.Helper()
	pids := b.process(program)
	if len(pids) != 1 {
		b.t.Fatalf("%d processes run %s, want one", len(pids), program)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
}

// A VM whose processes are killed is reported as ended, and leaves nothing.
func TestKilledWhileRunning(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	for _, program := range []string{"qemu-system", "vhost-device", "auberge-vm"} {
		t.Run(program, func(t *testing.T) {
			alice.start(&pb.StartVmRequest{Name: "x"})
			ear.expect("x", "VmStartingUp", "VmStarted")
			b.kill(program)
			if h := ear.expect("x", "VmStopped"); h.reason != pb.VmStopReason_VM_EXITED {
				t.Errorf("stopped because %v", h.reason)
			}
			if i := alice.info("x"); i != nil {
				t.Errorf("still there: %v", i)
			}
			var list pb.ListVmsResponse
			if alice.must("ListVms", &pb.ListVmsRequest{}, &list); len(list.Vms) > 0 {
				t.Errorf("still listed: %v", &list)
			}
			b.gone()
		})
	}
}

func TestKilledWhileStarting(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	for _, program := range []string{"qemu-system", "vhost-device", "auberge-vm"} {
		t.Run(program, func(t *testing.T) {
			alice.small("x")
			done := alice.goStart(&pb.StartVmRequest{Name: "x"})
			ear.expect("x", "VmStartingUp")
			b.waitProcess("qemu-system")
			b.kill(program)
			resp := <-done
			if resp.Success || resp.Status != pb.VmStatus_VM_STATUS_FAILURE || !strings.Contains(resp.FailureReason, "ended") {
				t.Errorf("StartVm: %v", resp)
			}
			t.Log(resp.FailureReason)
			ear.expect("x", "VmStopped")
			b.gone()
		})
	}
}

// goStart starts a VM in the background.
func (c *client) goStart(req *pb.StartVmRequest) <-chan *pb.StartVmResponse {
	done := make(chan *pb.StartVmResponse, 1)
	go func() {
		var resp pb.StartVmResponse
		if err := c.call("StartVm", req, &resp); err != nil {
			resp.FailureReason = err.Error()
		}
		done <- &resp
	}()
	return done
}

// waitProcess waits until a VM runs a program. Nothing announces that moment,
// so it is looked for.
func (b *bed) waitProcess(program string) {
	b.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(b.process(program)) == 0 {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("%s never ran", program)
		}
	}
}

// A guest whose agent never gets through is given up after the time asked
// for, with the guest's last words.
func TestGuestThatNeverReports(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	alice.small("mute")
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "mute", Timeout: 8,
		KernelParams: []string{"rdinit=/nothing", "init=/nothing", "panic=0", "loglevel=7"}}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "within 8s") || !strings.Contains(resp.FailureReason, "console") {
		t.Errorf("StartVm: %v", &resp)
	}
	t.Log(resp.FailureReason)
	ear.expect("mute", "VmStartingUp", "VmStopped")
	b.gone()

	// One that panics is known at once.
	alice.must("StartVm", &pb.StartVmRequest{Name: "mute", KernelParams: []string{"rdinit=/nothing", "init=/nothing"}}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "panic") {
		t.Errorf("StartVm: %v", &resp)
	}
	ear.expect("mute", "VmStartingUp", "VmStopped")
	b.gone()
}

// Two starts at once make one VM, and both callers learn of it.
func TestTwoStartsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	other := b.client(testbed.Alice)
	ear := alice.listen()
	alice.small("x")
	first, second := alice.goStart(&pb.StartVmRequest{Name: "x"}), other.goStart(&pb.StartVmRequest{Name: "x"})
	a, c := <-first, <-second
	if !a.Success || !c.Success || a.VmInfo.Pid != c.VmInfo.Pid || a.VmInfo.Cid != c.VmInfo.Cid {
		t.Errorf("two starts: %v and %v", a, c)
	}
	ear.expect("x", "VmStartingUp", "VmStarted")
	if again := alice.start(&pb.StartVmRequest{Name: "x"}); again.Pid != a.VmInfo.GetPid() {
		t.Errorf("a third start: %v", again)
	}
	if n := len(b.process("qemu-system")); n != 1 {
		t.Errorf("%d VMs", n)
	}
	ear.silent(alice)
	alice.stop("x")
	ear.expect("x", "VmStopping", "VmStopped")
	b.gone()
}

// StopVm ends a start at once, whenever it comes.
func TestStopDuringStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	alice.small("x")
	for _, when := range []string{"announced", "hypervisor"} {
		done := alice.goStart(&pb.StartVmRequest{Name: "x"})
		ear.expect("x", "VmStartingUp")
		if when == "hypervisor" {
			b.waitProcess("qemu-system")
		}
		alice.stop("x")
		if resp := <-done; resp.Success || !strings.Contains(resp.FailureReason, "stopped while it was starting") {
			t.Errorf("%s: StartVm: %v", when, resp)
		}
		h := ear.next()
		if h.name == "VmStopping" {
			h = ear.next()
		}
		if h.name != "VmStopped" || h.reason != pb.VmStopReason_STOP_VM_REQUESTED {
			t.Errorf("%s: heard %s, %v", when, h.name, h.reason)
		}
		b.gone()
	}
	// It can be started afterwards.
	alice.start(&pb.StartVmRequest{Name: "x"})
	alice.stop("x")
	b.gone()
}

// The guest is somebody else's business: signals, lists and streams of one
// user's VM are out of another user's reach, the administrator has them.
func TestUsersApart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob, root := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Root)
	hears, bobHears, rootHears := alice.listen(), bob.listen(), root.listen()
	if err := bob.conn.AddMatchSignal(godbus.WithMatchInterface(dbus.ConciergeInterface)); err != nil {
		t.Fatal(err)
	}
	if err := bob.own("Subscribe").Err; err != nil {
		t.Fatal(err)
	}
	if err := root.own("Subscribe").Err; err != nil {
		t.Fatal(err)
	}
	alice.start(&pb.StartVmRequest{Name: "x"})
	hears.expect("x", "VmStartingUp", "VmStarted")
	rootHears.expect("x", "VmStartingUp", "VmStarted")
	bobHears.silent(bob)
	if i := bob.info("x"); i != nil {
		t.Errorf("bob sees %v", i)
	}
	var list pb.ListVmsResponse
	if bob.must("ListVms", &pb.ListVmsRequest{}, &list); len(list.Vms) != 0 {
		t.Errorf("bob's list: %v", &list)
	}
	bob.stop("x") // his own of that name, which does not run
	if i := alice.info("x"); i.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("alice's VM after bob's stop: %v", i)
	}
	if root.must("ListVms", &pb.ListVmsRequest{OwnerId: "64101"}, &list); len(list.Vms) != 1 || list.Vms[0].OwnerId != "64101" {
		t.Errorf("root's list of alice's VMs: %v", &list)
	}
	// Nobody else can even reach the sockets.
	for _, u := range []testbed.User{testbed.Bob, testbed.Alice} {
		if out, _, err := output(b.Command(u, "/bin/sh", "-c", "ls "+b.RuntimeDir+"/vms/*")); err == nil {
			t.Errorf("%s lists a VM's directory: %s", u.Name, out)
		}
	}
	for _, pid := range b.Processes() {
		for _, line := range statusLines(t, pid) {
			if (line[0] == "CapEff:" || line[0] == "CapAmb:" || line[0] == "CapPrm:") && strings.Trim(line[1], "0") != "" {
				t.Errorf("process %d has capabilities: %v", pid, line)
			}
			if line[0] == "Uid:" && (line[1] != "64042" || line[2] != "64042") {
				t.Errorf("process %d runs as uid %v", pid, line[1:])
			}
			if line[0] == "NoNewPrivs:" && line[1] != "1" {
				t.Errorf("process %d may gain rights", pid)
			}
		}
	}
	var resp pb.SuccessFailureResponse
	root.must("StopVm", &pb.StopVmRequest{Name: "x", OwnerId: "64101"}, &resp)
	hears.expect("x", "VmStopping", "VmStopped")
	bobHears.silent(bob)
	b.gone()
}

// SIGTERM and SIGKILL to the service leave VMs running; the next service
// finds them.
func TestServiceRestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	before := alice.start(&pb.StartVmRequest{Name: "x"})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		b.concierge.Stop(sig)
		b.startConcierge()
		after := alice.info("x")
		if after.GetPid() != before.Pid || after.GetCid() != before.Cid || after.GetIpv4Address() != before.Ipv4Address ||
			after.GetStatus() != pb.VmStatus_VM_STATUS_RUNNING {
			t.Fatalf("after %v: %v, before: %v", sig, after, before)
		}
		if err := alice.own("ConnectVsock", "x", "", uint32(9001)).Err; err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
	}
	// What ends while nobody looks is told by the next service.
	b.concierge.Stop(syscall.SIGKILL)
	b.kill("qemu-system")
	ear := alice.listen()
	b.startConcierge()
	ear.expect("x", "VmStopped")
	if i := alice.info("x"); i != nil {
		t.Errorf("still there: %v", i)
	}
	alice.start(&pb.StartVmRequest{Name: "x"})
	alice.stop("x")
	b.gone()
}

// The bus goes away and comes back; VMs and the service do not care.
func TestBusRestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	before := alice.start(&pb.StartVmRequest{Name: "x"})
	b.StopBus()
	if err := b.StartBus(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := b.client(testbed.Alice)
	again.waitService()
	if i := again.info("x"); i.GetPid() != before.Pid {
		t.Errorf("after the bus came back: %v", i)
	}
	ear := again.listen()
	again.stop("x")
	ear.expect("x", "VmStopping", "VmStopped")
	b.gone()
}

// waitService waits until vm_concierge has its name.
func (c *client) waitService() {
	c.t.Helper()
	if err := c.conn.AddMatchSignal(godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, dbus.ConciergeName)); err != nil {
		c.t.Fatal(err)
	}
	ch := make(chan *godbus.Signal, 8)
	c.conn.Signal(ch)
	defer c.conn.RemoveSignal(ch)
	var owned bool
	c.conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, dbus.ConciergeName).Store(&owned)
	timeout := time.After(patience)
	for !owned {
		select {
		case s := <-ch:
			owned = s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Body[2] != ""
		case <-timeout:
			c.t.Fatal("the service did not come back to the bus")
		}
	}
}

// A slow VM delays nobody: while one start hangs, others are served.
func TestSlowVMDelaysNobody(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.small("slow")
	slow := alice.goStart(&pb.StartVmRequest{Name: "slow", KernelParams: []string{"maitred.listen_port=1"}})
	alice.start(&pb.StartVmRequest{Name: "quick"})
	select {
	case resp := <-slow:
		t.Fatalf("the slow one is not slow: %v", resp)
	default:
	}
	var wg sync.WaitGroup
	for _, name := range []string{"slow", "quick"} {
		wg.Go(func() { alice.stop(name) })
	}
	wg.Wait()
	<-slow
	b.gone()
}
