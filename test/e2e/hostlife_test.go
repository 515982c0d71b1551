package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// accounts makes a file of accounts in which users are, and returns its name.
func (b *bed) accounts(users ...testbed.User) string {
	b.t.Helper()
	var text strings.Builder
	for _, u := range users {
		fmt.Fprintf(&text, "%s:x:%d:%d::/:/bin/sh\n", u.Name, u.UID, u.GID)
	}
	path := filepath.Join(b.Dir, "passwd")
	replace(b.t, path, text.String())
	return path
}

// VMs sleep with their host, have the right time afterwards, are stopped
// before it shuts down, and when their user is removed. The login manager is a
// fake; test/hosttest has the real one.
func TestHostLife(t *testing.T) {
	t.Parallel()
	b := newBedWith(t, testbed.Options{Policies: []string{"testdata/logind.conf"}})
	b.startConcierge("--passwd", b.accounts(testbed.Alice, testbed.Bob))
	alice, root := b.client(testbed.Alice), b.client(testbed.Root)
	// Longer than the real one's delay: guests are emulated here.
	login := dbustest.NewLogind(t, root.conn, patience)
	login.Appear()
	sleep, shutdown := login.AwaitLock("sleep", patience), login.AwaitLock("shutdown", patience)
	alice.start(&pb.StartVmRequest{Name: "x"})
	alice.start(&pb.StartVmRequest{Name: "own"})
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "own"})
	alice.wrongClock("x")

	login.PrepareForSleep(true)
	sleep.AwaitRelease(t, patience)
	for _, vm := range []string{"64101/x", "64101/own"} {
		if got := alice.state().status(vm); got != "suspended" {
			t.Errorf("while the host sleeps %s is %q", vm, got)
		}
	}
	login.PrepareForSleep(false)
	login.AwaitLock("sleep", patience)
	eventually(t, "the VM goes on", func() (string, bool) {
		got := alice.state().status("64101/x")
		return got, got == "running"
	})
	eventually(t, "the clock is right", func() (string, bool) {
		got := alice.vsh("x", "date", "+%Y")
		return got, got != "2096"
	})
	alice.rightClock("x")
	if got := alice.state().status("64101/own"); got != "suspended" {
		t.Errorf("the VM that its user has suspended is %q", got)
	}

	ear := alice.listen()
	if !shutdown.Held() {
		t.Error("the host would not wait for its VMs to stop")
	}
	login.PrepareForShutdown(true)
	said := map[string]string{}
	for range 4 {
		h := ear.next()
		said[h.vm] += h.name + " "
		if h.name == "VmStopped" && h.reason != pb.VmStopReason_SERVICE_SHUTDOWN {
			t.Errorf("%s stopped because %v", h.vm, h.reason)
		}
	}
	for _, vm := range []string{"x", "own"} {
		if said[vm] != "VmStopping VmStopped " {
			t.Errorf("of %s was said %q", vm, said[vm])
		}
	}
	shutdown.AwaitRelease(t, patience)
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "x"}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "shutting down") {
		t.Errorf("a start while the host shuts down: %v", &resp)
	}
	login.PrepareForShutdown(false)
	login.AwaitLock("shutdown", patience)
	eventually(t, "a start after the shutdown was called off", func() (string, bool) {
		alice.must("StartVm", &pb.StartVmRequest{Name: "x"}, &resp)
		return resp.FailureReason, resp.Success
	})

	ear = alice.listen()
	b.accounts(testbed.Bob)
	ear.expect("x", "VmStopping", "VmStopped")
	b.gone()
	b.accounts(testbed.Alice, testbed.Bob)

	// What auberge-guests.service runs.
	alice.start(&pb.StartVmRequest{Name: "x"})
	if out, errs, err := root.run("vm_concierge", "stop-guests", "--bus", b.Address, "--runtime-dir", b.RuntimeDir); err != nil || !strings.Contains(out, "have been stopped") {
		t.Errorf("stop-guests: %q, %q, %v", out, errs, err)
	}
	b.gone()
	// And when there is neither a service nor anything for it to do.
	if err := b.concierge.Stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if out, errs, err := root.run("vm_concierge", "stop-guests", "--bus", b.Address, "--runtime-dir", b.RuntimeDir); err != nil || !strings.Contains(out, "no virtual machines") {
		t.Errorf("stop-guests without a service: %q, %q, %v", out, errs, err)
	}
}
