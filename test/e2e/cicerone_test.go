package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// startCicerone starts vm_cicerone beside vm_concierge.
func (b *bed) startCicerone(args ...string) *testbed.Daemon {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	d, err := b.StartCicerone(ctx, args...)
	if err != nil {
		b.t.Fatalf("start vm_cicerone: %v\n%s", err, b.log)
	}
	return d
}

// cicerone calls a method of vm_cicerone.
func (c *client) cicerone(method string, req, resp proto.Message) error {
	c.t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		c.t.Fatal(err)
	}
	var out []byte
	if err := c.cicerone1(dbus.CiceroneInterface+"."+method, b).Store(&out); err != nil {
		return err
	}
	if err := proto.Unmarshal(out, resp); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return nil
}

// cicerone1 calls a method of vm_cicerone with plain arguments.
func (c *client) cicerone1(method string, args ...any) *godbus.Call {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.conn.Object(dbus.CiceroneName, dbus.CiceronePath).CallWithContext(ctx, method, 0, args...)
}

// debug is what vm_cicerone tells a client of the VMs that it looks after.
func (c *client) debug() string {
	c.t.Helper()
	var resp ciceronepb.GetDebugInformationResponse
	if err := c.cicerone("GetDebugInformation", &ciceronepb.GetDebugInformationRequest{}, &resp); err != nil {
		c.t.Fatal(err)
	}
	return resp.DebugInformation
}

// looksAfter says whether vm_cicerone knows a VM of the client's.
func (c *client) looksAfter(vm string) bool {
	c.t.Helper()
	return strings.Contains(c.debug(), fmt.Sprintf("VM %s of owner %d, ", vm, c.user.UID))
}

// Whichever of the daemons and VMs come and go in whatever order, vm_cicerone
// knows the VMs that run when it can be asked, and no others.
func TestCiceroneKnowsVMs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob, root := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Root)
	// One that is not there holds nothing up.
	alice.start(&pb.StartVmRequest{Name: "before"})
	d := b.startCicerone()
	if !alice.looksAfter("before") {
		t.Error("a VM that ran before is not known")
	}
	alice.start(&pb.StartVmRequest{Name: "x"})
	b.await("wait until vm_cicerone knows a VM that was started", func() bool { return alice.looksAfter("x") })
	if got := bob.debug(); got != "" {
		t.Errorf("bob hears of other people's VMs: %s", got)
	}
	if got := root.debug(); !strings.Contains(got, "VM x of owner ") {
		t.Errorf("root hears nothing of alice's VM: %s", got)
	}
	alice.stop("before")
	b.await("wait until vm_cicerone has heard of a VM's end", func() bool { return !alice.looksAfter("before") })

	restart := func() {
		t.Helper()
		d.Stop(syscall.SIGKILL)
		d = b.startCicerone()
	}
	restart()
	if !alice.looksAfter("x") {
		t.Error("vm_cicerone was killed, and the next one does not know the VM")
	}
	b.concierge.Stop(syscall.SIGKILL)
	if !alice.looksAfter("x") {
		t.Error("vm_concierge is away, and vm_cicerone has forgotten the VM")
	}
	// And the next one comes without vm_concierge, as it may when both start.
	restart()
	b.startConcierge()
	b.await("wait until vm_cicerone has found vm_concierge again", func() bool { return alice.looksAfter("x") })

	// What happens while vm_cicerone is away.
	d.Stop(syscall.SIGTERM)
	alice.stop("x")
	alice.start(&pb.StartVmRequest{Name: "y"})
	d = b.startCicerone()
	if alice.looksAfter("x") || !alice.looksAfter("y") {
		t.Errorf("vm_cicerone knows %s", alice.debug())
	}
	// And while vm_concierge is.
	b.concierge.Stop(syscall.SIGKILL)
	b.kill("qemu-system-x86_64")
	b.startConcierge()
	b.await("wait until vm_cicerone has heard of the VM that ended", func() bool { return !alice.looksAfter("y") })
	b.gone()
}

// Vm_cicerone finds its way on another bus.
func TestCiceroneSurvivesTheBus(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.startCicerone()
	b.client(testbed.Alice).start(&pb.StartVmRequest{Name: "x"})
	b.StopBus()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.StartBus(ctx); err != nil {
		t.Fatal(err)
	}
	alice := b.client(testbed.Alice)
	alice.waitService()
	b.await("wait until vm_cicerone is on the bus", func() bool {
		return alice.cicerone1(dbus.Cicerone1Name+".GetServiceInfo").Err == nil
	})
	b.await("wait until vm_cicerone knows the VM", func() bool { return alice.looksAfter("x") })
	alice.stop("x")
	b.await("wait until vm_cicerone has heard of the VM's end", func() bool { return !alice.looksAfter("x") })
}

// about fills in a request with a VM, a container and an owner.
func about(m proto.Message, vm, owner string) proto.Message {
	req := proto.Clone(m)
	r := req.ProtoReflect()
	for name, value := range map[protoreflect.Name]string{"vm_name": vm, "container_name": "penguin", "owner_id": owner} {
		if fd := r.Descriptor().Fields().ByName(name); fd != nil && fd.Kind() == protoreflect.StringKind {
			r.Set(fd, protoreflect.ValueOfString(value))
		}
	}
	return req
}

// whole are fields without which a request is refused before its VM is looked for.
var whole = map[string]proto.Message{
	"LaunchVshd":                 &ciceronepb.LaunchVshdRequest{Port: 9001},
	"CancelExportLxdContainer":   &ciceronepb.CancelExportLxdContainerRequest{InProgressContainerName: "penguin"},
	"CancelImportLxdContainer":   &ciceronepb.CancelImportLxdContainerRequest{InProgressContainerName: "penguin"},
	"AddFileWatch":               &ciceronepb.AddFileWatchRequest{Path: "x"},
	"RemoveFileWatch":            &ciceronepb.RemoveFileWatchRequest{Path: "x"},
	"GetLinuxPackageInfo":        &ciceronepb.LinuxPackageInfoRequest{PackageName: "hello"},
	"InstallLinuxPackage":        &ciceronepb.InstallLinuxPackageRequest{PackageId: "hello;1;all;x"},
	"UninstallPackageOwningFile": &ciceronepb.UninstallPackageOwningFileRequest{DesktopFileId: "x"},
	"ApplyAnsiblePlaybook":       &ciceronepb.ApplyAnsiblePlaybookRequest{Playbook: "- hosts: all"},
}

// Each method answers about a VM that does not run as its response can, and
// about another user's as if there were none.
func TestCiceroneAndUnknownVMs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.startCicerone()
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	alice.start(&pb.StartVmRequest{Name: "x"})
	b.await("wait until vm_cicerone knows the VM", func() bool { return alice.looksAfter("x") })
	const unknown = `VM "x" of owner`
	for _, m := range dbus.CiceroneService(nil).Methods {
		if m.Right != policy.RightOwn {
			continue
		}
		req := m.Request
		if r := whole[m.Name]; r != nil {
			req = r
		}
		resp := proto.Clone(m.Response)
		err := bob.cicerone(m.Name, about(req, "x", ""), resp)
		fields := resp.ProtoReflect().Descriptor().Fields()
		reason, status := fields.ByName("failure_reason"), fields.ByName("status")
		switch {
		case m.Name == "IsContainerRunning" || m.Name == "ListRunningContainers":
			if err != nil || proto.Size(resp) > 0 {
				t.Errorf("%s: %v, %v", m.Name, resp, err)
			}
		case reason == nil:
			if errorName(err) != dbus.ErrorNotFound || !strings.Contains(err.Error(), unknown) {
				t.Errorf("%s: %v, %v", m.Name, resp, err)
			}
		case err != nil || !strings.Contains(resp.ProtoReflect().Get(reason).String(), unknown):
			t.Errorf("%s: %v, %v", m.Name, resp, err)
		case status != nil:
			// CreateLxdContainer says UNKNOWN, as on ChromeOS.
			want := protoreflect.Name("FAILED")
			switch m.Name {
			case "CreateLxdContainer":
				want = "UNKNOWN"
			case "GetGarconSessionInfo":
				want = "NOT_FOUND"
			}
			if got := status.Enum().Values().ByNumber(resp.ProtoReflect().Get(status).Enum()); got == nil || got.Name() != want {
				t.Errorf("%s: %v, not %s", m.Name, resp, want)
			}
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := godbus.UnixFD(null.Fd())
	for method, args := range map[string][]any{
		"ListContainers": {"x", ""}, "ListApplications": {"x", "", "penguin"},
		"ExportContainer": {"x", "", "penguin", fd}, "ImportContainer": {"x", "", "penguin", fd},
	} {
		if err := bob.cicerone1(dbus.Cicerone1Name+"."+method, args...).Err; errorName(err) != dbus.ErrorNotFound {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// What is no request, or names what cannot be, is refused, and the service
// serves on.
func TestCiceroneAndMalformedRequests(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.startCicerone()
	alice := b.client(testbed.Alice)
	for _, m := range dbus.CiceroneService(nil).Methods {
		member := dbus.CiceroneInterface + "." + m.Name
		for what, args := range map[string][]any{
			"half a message": {[]byte{0x0a, 200, 'x'}}, "no message": {[]byte{0xff, 0xff}}, "nothing": {}, "another type": {"x"},
			"too much": {[]byte{}, []byte{}}, "an owner that is no text": {[]byte("\x12\x02\xff\xfe\x1a\x02\xff\xfe\x0a\x02\xff\xfe")},
		} {
			want := invalidArgs
			if m.Right == policy.RightDaemon {
				want = accessDenied
			}
			err := alice.cicerone1(member, args...).Err
			if m.Name == "GetDebugInformation" && what == "an owner that is no text" && err == nil {
				continue // it has no fields
			}
			if errorName(err) != want {
				t.Errorf("%s with %s: %v", m.Name, what, err)
			}
		}
		if m.Right != policy.RightOwn {
			continue
		}
		for _, bad := range [][2]string{{"../x", ""}, {strings.Repeat("x", 1000), ""}, {"x", "a/b"}, {"x", "1:x"}} {
			if bad[1] == "" && (m.Name == "IsContainerRunning" || m.Name == "ListRunningContainers") {
				continue // none of that name runs
			}
			resp := proto.Clone(m.Response)
			err := alice.cicerone(m.Name, about(m.Request, bad[0], bad[1]), resp)
			reason := resp.ProtoReflect().Descriptor().Fields().ByName("failure_reason")
			if (reason == nil) != (err != nil) || reason != nil && resp.ProtoReflect().Get(reason).String() == "" {
				t.Errorf("%s about the VM %.9q of %q: %v, %v", m.Name, bad[0], bad[1], resp, err)
			}
		}
	}
	if err := alice.cicerone1(dbus.CiceroneInterface+".StartLxd", make([]byte, 5<<20)).Err; errorName(err) != "org.freedesktop.DBus.Error.LimitsExceeded" {
		t.Errorf("a request of 5 MiB: %v", err)
	}
	alice.debug()
}
