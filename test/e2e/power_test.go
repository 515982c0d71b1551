package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// ok calls a method that answers with success alone.
func (c *client) ok(method string, req pbMessage) {
	c.t.Helper()
	var resp pb.SuccessFailureResponse
	c.must(method, req, &resp)
	if !resp.Success {
		c.t.Fatalf("%s: %v", method, &resp)
	}
}

// bare calls a method of vm_concierge that takes no argument.
func (c *client) bare(method string, results ...any) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := c.object().CallWithContext(ctx, dbus.ConciergeInterface+"."+method, 0).Store(results...); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
}

// A snapshot is what GetState says.
type snapshot struct {
	instance   string
	sequence   uint64
	vms        map[string]map[string]godbus.Variant
	operations []map[string]godbus.Variant
}

func (c *client) state() snapshot {
	c.t.Helper()
	var s snapshot
	var vms []map[string]godbus.Variant
	if err := c.own("GetState").Store(&s.instance, &s.sequence, &vms, &s.operations); err != nil {
		c.t.Fatal(err)
	}
	s.vms = map[string]map[string]godbus.Variant{}
	for _, v := range vms {
		s.vms[v["owner_id"].Value().(string)+"/"+v["name"].Value().(string)] = v
	}
	return s
}

// status is a VM's in one word, empty when it is not there.
func (s snapshot) status(vm string) string {
	v, ok := s.vms[vm]
	if !ok {
		return ""
	}
	return v["status"].Value().(string)
}

// wrongClock makes a guest's clock one of the distant future.
func (c *client) wrongClock(vm string) {
	c.t.Helper()
	_, err := c.maitred(vm).SetTime(c.t.Context(), &vmtoolspb.SetTimeRequest{Time: timestamppb.New(time.Unix(4_000_000_000, 0))})
	if err != nil {
		c.t.Fatal(err)
	}
	if got := c.vsh(vm, "date", "+%Y"); got != "2096" {
		c.t.Fatalf("the year is %s", got)
	}
}

func (c *client) rightClock(vm string) {
	c.t.Helper()
	n, err := strconv.ParseInt(c.vsh(vm, "date", "+%s"), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	if off := time.Since(time.Unix(n, 0)); off < -patience || off > patience {
		c.t.Errorf("the guest's clock is off by %v", off)
	}
}

// A VM that is suspended stands still, also across restarts of the service,
// and goes on with the right clock.
func TestSuspend(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.start(&pb.StartVmRequest{Name: "x"})
	pid := alice.info("x").Pid

	alice.wrongClock("x")
	shell := alice.shell("x") // a session that is open all the time
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "x"})
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "x"})
	if got := alice.state().status("64101/x"); got != "suspended" {
		t.Errorf("the state says %q", got)
	}
	if i := alice.info("x"); i == nil || i.Pid != pid {
		t.Errorf("info of a suspended VM: %v", i)
	}
	if _, errs, err := alice.run("vsh", "x", "--", "true"); err == nil || !strings.Contains(errs, "suspended") {
		t.Errorf("a shell in a suspended VM: %v, %s", err, errs)
	}
	var user pb.SetUpVmUserResponse
	alice.must("SetUpVmUser", &pb.SetUpVmUserRequest{VmName: "x", Username: "carol"}, &user)
	if user.Success || !strings.Contains(user.FailureReason, "suspended") {
		t.Errorf("a user in a suspended VM: %v", &user)
	}
	if err := bob.call("ResumeVm", &pb.ResumeVmRequest{Name: "x", OwnerId: "64101"}, &pb.SuccessFailureResponse{}); err == nil {
		t.Error("bob resumes alice's VM")
	}

	b.restartConcierge()
	if got := alice.state().status("64101/x"); got != "suspended" {
		t.Errorf("after a restart the state says %q", got)
	}
	alice.ok("ResumeVm", &pb.ResumeVmRequest{Name: "x"})
	alice.ok("ResumeVm", &pb.ResumeVmRequest{Name: "x"})
	if got := alice.state().status("64101/x"); got != "running" {
		t.Errorf("after ResumeVm the state says %q", got)
	}
	alice.rightClock("x")
	if got := shell.say("echo still here"); got != "still here" {
		t.Errorf("the shell of before says %q", got)
	}
	shell.end()

	// One that does not run is as suspended as can be.
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "nobody"})

	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "x"})
	ear := alice.listen()
	alice.stop("x")
	if h := ear.expect("x", "VmStopping", "VmStopped"); h.reason != pb.VmStopReason_STOP_VM_REQUESTED {
		t.Errorf("stopped because %v", h.reason)
	}
	b.gone()
}

// Calls about all VMs are about the caller's, and about everybody's only for
// an administrator.
func TestAllVMs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob, root := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Root)
	alice.start(&pb.StartVmRequest{Name: "x"})
	alice.start(&pb.StartVmRequest{Name: "x", OwnerId: "abc"})
	bob.start(&pb.StartVmRequest{Name: "x"})

	if got := len(alice.state().vms); got != 2 {
		t.Errorf("alice sees %d VMs", got)
	}
	if got := len(root.state().vms); got != 3 {
		t.Errorf("root sees %d VMs", got)
	}
	sync := func(c *client) *pb.SyncVmTimesResponse {
		t.Helper()
		var out []byte
		c.bare("SyncVmTimes", &out)
		var resp pb.SyncVmTimesResponse
		unmarshal(t, out, &resp)
		return &resp
	}
	alice.wrongClock("x")
	bob.wrongClock("x")
	if r := sync(alice); r.Requests != 2 || r.Failures != 0 {
		t.Errorf("alice's SyncVmTimes: %v", r)
	}
	alice.rightClock("x")
	if got := bob.vsh("x", "date", "+%Y"); got != "2096" {
		t.Errorf("alice set the clock of bob's VM: %s", got)
	}
	if r := sync(root); r.Requests != 3 || r.Failures != 0 {
		t.Errorf("root's SyncVmTimes: %v", r)
	}
	bob.rightClock("x")

	var resp pb.SuccessFailureResponse
	alice.must("StopVmWithoutOwnerId", &pb.StopVmRequest{}, &resp)
	if resp.Success || resp.FailureReason == "" {
		t.Errorf("no name: %v", &resp)
	}
	// The owner word is not looked at.
	alice.ok("StopVmWithoutOwnerId", &pb.StopVmRequest{Name: "x", OwnerId: "64102"})
	if len(alice.state().vms) != 0 || bob.info("x") == nil {
		t.Errorf("alice has %d VMs, bob's is %v", len(alice.state().vms), bob.info("x"))
	}
	alice.start(&pb.StartVmRequest{Name: "y"})
	bobs := bob.listen()
	root.bare("StopAllVms")
	if h := bobs.expect("x", "VmStopping", "VmStopped"); h.reason != pb.VmStopReason_STOP_ALL_VMS_REQUESTED {
		t.Errorf("stopped because %v", h.reason)
	}
	if n := len(root.state().vms); n != 0 {
		t.Errorf("%d VMs run after StopAllVms", n)
	}
	// It is not the end of the service.
	alice.start(&pb.StartVmRequest{Name: "y"})
	bob.bare("StopAllVms")
	if alice.info("y") == nil {
		t.Error("bob's StopAllVms stopped alice's VM")
	}
	alice.bare("StopAllVms")
	b.gone()
}
