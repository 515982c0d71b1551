package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// descriptors calls the methods that hand out descriptors, about alice's VM.
func (c *client) descriptors(vm, owner string) map[string]*godbus.Call {
	c.t.Helper()
	return map[string]*godbus.Call{
		"ConnectVsock": c.own("ConnectVsock", vm, owner, uint32(9001)),
		"ListenVsock":  c.own("ListenVsock", vm, owner, uint32(0)),
		"OpenVmLogs":   c.own("OpenVmLogs", vm, owner, map[string]godbus.Variant{}),
	}
}

// audits counts the lines of the audit.
func (b *bed) audits(u testbed.User, method, owner string, allowed bool) int {
	return len(regexp.MustCompile(fmt.Sprintf(`audit=true uid=%d name=:\S+ method=%s owner=%s allowed=%t\b`,
		u.UID, regexp.QuoteMeta(method), owner, allowed)).FindAllString(b.log.String(), -1))
}

// awaitAudit waits for the first such line: what the daemon logs may come a moment
// after its answer.
func (b *bed) awaitAudit(u testbed.User, method, owner string, allowed bool) {
	b.t.Helper()
	b.await("wait for the audit of "+method, func() bool { return b.audits(u, method, owner, allowed) > 0 })
}

// spy does all that a client can do to hear what is not meant for it.
func (c *client) spy(victim *client) *ear {
	c.t.Helper()
	if err := c.own("Subscribe").Err; err != nil {
		c.t.Fatal(err)
	}
	e := c.listen()
	for _, rule := range []string{
		"", "eavesdrop='true'", "type='signal',eavesdrop='true'", "type='method_return',eavesdrop='true'",
		"sender='" + dbus.ConciergeName + "',eavesdrop='true'",
		"destination='" + victim.conn.Names()[0] + "',eavesdrop='true'",
	} {
		// Some are refused, as the bus likes; none may help.
		c.conn.BusObject().Call("org.freedesktop.DBus.AddMatch", 0, rule)
	}
	err := c.conn.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{}, uint32(0)).Err
	if errorName(err) != accessDenied {
		c.t.Errorf("%s watches the bus: %v", c.user.Name, err)
	}
	return e
}

// Nobody else gets at a VM that runs, or hears of it, except for an
// administrator, who leaves a trace.
func TestOtherPeoplesRunningVMs(t *testing.T) {
	b, _ := newPolkitBed(t)
	alice, bob, carol := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Carol)
	dave, peer := b.client(testbed.Dave), b.client(testbed.Peer)
	if err := carol.own("Subscribe").Err; err != nil {
		t.Fatal(err)
	}
	hers, daemons, daves := carol.listen(), peer.listen(), dave.listen()
	spy := bob.spy(alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	hers.expect("x", "VmStartingUp", "VmStarted")
	daemons.expect("x", "VmStartingUp", "VmStarted")

	owner := itoa(int(testbed.Alice.UID))
	for _, c := range []*client{bob, dave, peer} {
		for method, call := range c.descriptors("x", owner) {
			if errorName(call.Err) != accessDenied {
				t.Errorf("%s of alice's VM by %s: %v", method, c.user.Name, call.Err)
			}
			b.awaitAudit(c.user, dbus.Concierge1Name+"."+method, owner, false)
			if n := b.audits(c.user, dbus.Concierge1Name+"."+method, owner, false); n != 1 {
				t.Errorf("%s by %s is %d lines of the audit", method, c.user.Name, n)
			}
		}
		// By its plain name it is not to be found.
		for method, call := range c.descriptors("x", "") {
			want := dbus.ErrorNotFound
			if c != bob {
				want = accessDenied
			}
			if errorName(call.Err) != want {
				t.Errorf("%s of %s's own: %v, want %s", method, c.user.Name, call.Err, want)
			}
		}
	}
	for method, call := range carol.descriptors("x", owner) {
		// Nothing listens on the guest's port 9001: she gets as far as the guest.
		if err := call.Err; errorName(err) == accessDenied || err != nil && method != "ConnectVsock" {
			t.Errorf("%s of alice's VM by an administrator: %v", method, err)
		}
		b.awaitAudit(carol.user, dbus.Concierge1Name+"."+method, owner, true)
		if n := b.audits(carol.user, dbus.Concierge1Name+"."+method, owner, true); n != 1 {
			t.Errorf("%s by an administrator is %d lines of the audit", method, n)
		}
	}
	var fd godbus.UnixFD
	if err := carol.own("OpenVmLogs", "x", owner, map[string]godbus.Variant{}).Store(&fd); err != nil {
		t.Fatal(err)
	}
	log := os.NewFile(uintptr(fd), "log")
	defer log.Close()
	if text, err := io.ReadAll(log); err != nil || len(text) == 0 {
		t.Errorf("an administrator reads %q of alice's log, %v", text, err)
	}
	var stop pb.SuccessFailureResponse
	carol.must("StopVm", &pb.StopVmRequest{Name: "x", OwnerId: owner}, &stop)
	if !stop.Success {
		t.Errorf("an administrator stops alice's VM: %v", &stop)
	}
	hers.expect("x", "VmStopping", "VmStopped")
	daemons.expect("x", "VmStopping", "VmStopped")
	spy.silent(bob)
	// Dave may not even ask: an answer of the service ends the wait.
	dave.call("ListVms", &pb.ListVmsRequest{}, &pb.ListVmsResponse{})
	for len(daves.ch) > 0 {
		if s := <-daves.ch; strings.HasPrefix(s.Name, "org.chromium") || strings.HasPrefix(s.Name, "io.github") {
			t.Errorf("dave heard %s", s.Name)
		}
	}
	b.gone()
}

// What polkit says is believed as long as it holds, and nobody is let in when
// it says nothing.
func TestPolkitChangesItsMind(t *testing.T) {
	b, p := newPolkitBed(t)
	alice, dave := b.client(testbed.Alice), b.client(testbed.Dave)
	list := func(c *client) error { return c.call("ListVms", &pb.ListVmsRequest{}, &pb.ListVmsResponse{}) }
	if err := list(dave); errorName(err) != accessDenied || !strings.Contains(err.Error(), "group auberge") {
		t.Fatalf("dave: %v", err)
	}
	if err := list(alice); err != nil {
		t.Fatalf("alice: %v", err)
	}
	rules := carolManages + `polkit.addRule(function(action, subject) {
    if (action.id == "io.github.auberge-vm.use") return subject.user == "dave" ? polkit.Result.YES : polkit.Result.NO;
});
`
	if err := p.Rules(rules); err != nil {
		t.Fatal(err)
	}
	b.await("a new rule to let dave in", func() bool { return list(dave) == nil })
	if err := list(alice); errorName(err) != accessDenied {
		t.Errorf("alice is still let in: %v", err)
	}

	// polkit tells of one change up to twice, and what was known is asked anew then.
	// It has answered the other one since.
	if err := list(dave); err != nil {
		t.Fatal(err)
	}

	// Whose answer is known does not wait for a polkit that stands still, and
	// whose is not known gets it when polkit goes on.
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	newcomer := b.client(testbed.Dave)
	go func() {
		waiting <- newcomer.object().CallWithContext(t.Context(), dbus.Concierge1Name+".GetState", 0).Err
	}()
	for range 20 {
		if err := list(dave); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-waiting:
		t.Errorf("was answered without polkit: %v", err)
	default:
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}

	// Nothing is kept of a polkit that has gone.
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	b.await("nobody to be let in without polkit", func() bool { return list(dave) != nil })
	if err := list(dave); errorName(err) != accessDenied || !strings.Contains(err.Error(), "polkitd") {
		t.Errorf("without polkit: %v", err)
	}
	if err := list(b.client(testbed.Root)); err != nil {
		t.Errorf("root without polkit: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := list(dave); err != nil {
		t.Errorf("polkit is back: %v", err)
	}
}

// A password that nobody can be asked for is a no, at once.
func TestNoAgentToAskForAPassword(t *testing.T) {
	b, _ := newPolkitBed(t)
	bob := b.client(testbed.Bob)
	call := bob.conn.Send(&godbus.Message{
		Type: godbus.TypeMethodCall, Flags: godbus.FlagAllowInteractiveAuthorization,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(dbus.ConciergeName), godbus.FieldPath: godbus.MakeVariant(godbus.ObjectPath(dbus.ConciergePath)),
			godbus.FieldInterface: godbus.MakeVariant(dbus.Concierge1Name), godbus.FieldMember: godbus.MakeVariant("GetVmSettings"),
			godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf("", "")),
		},
		Body: []any{"x", itoa(int(testbed.Alice.UID))},
	}, make(chan *godbus.Call, 1))
	if <-call.Done; errorName(call.Err) != accessDenied {
		t.Errorf("%v", call.Err)
	}
}

// A user who was removed has left a disk: an administrator gets at it, and
// nobody else learns whether it is there.
func TestARemovedUsersDisk(t *testing.T) {
	b, _ := newPolkitBed(t)
	alice, bob, carol := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Carol)
	var disk pb.CreateDiskImageResponse
	if alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "left", DiskSize: 1 << 20}, &disk); disk.FailureReason != "" {
		t.Fatal(&disk)
	}
	passwd := filepath.Join(testbed.Base, "passwd") // every bed's
	old, err := os.ReadFile(passwd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(passwd, old, 0o644) })
	without := regexp.MustCompile(`(?m)^alice:.*\n`).ReplaceAll(old, nil)
	if err := os.WriteFile(passwd, without, 0o644); err != nil || len(without) == len(old) {
		t.Fatalf("remove alice: %v", err)
	}
	request := func(uid string) *pb.ListVmDisksRequest { return &pb.ListVmDisksRequest{CryptohomeId: uid} }
	var list pb.ListVmDisksSeedResponse
	if carol.must("ListVmDisks", request(itoa(int(testbed.Alice.UID))), &list); len(list.Images) != 1 {
		t.Errorf("the administrator sees %v", &list)
	}
	if err := carol.call("ListVmDisks", request("64999"), &list); errorName(err) != accessDenied {
		t.Errorf("a user who never was: %v", err)
	}
	there := bob.call("ListVmDisks", request(itoa(int(testbed.Alice.UID))), &list)
	nowhere := bob.call("ListVmDisks", request("64999"), &list)
	if there == nil || nowhere == nil || strings.ReplaceAll(there.Error(), itoa(int(testbed.Alice.UID)), "64999") != nowhere.Error() {
		t.Errorf("bob is told %v, and %v", there, nowhere)
	}
	if err := b.concierge.Stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
