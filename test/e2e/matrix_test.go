package e2e

import (
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// carolManages is a local rule: Carol is an administrator and needs no
// password. She is no member of the group auberge.
const carolManages = `polkit.addRule(function(action, subject) {
    if (action.id == "io.github.auberge-vm.manage-others" && subject.user == "carol") return polkit.Result.YES;
});
`

// newPolkitBed is a bed in which polkit decides. polkit finds its rules at places
// of which there is one: such a test does not run beside others.
func newPolkitBed(t *testing.T) (*bed, *testbed.Polkit) {
	t.Helper()
	b := newBedWith(t, testbed.Options{Policies: []string{testbed.PolkitPolicy}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := b.StartPolkit(ctx, carolManages)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.log)
	}
	b.startConcierge("--polkit", "required")
	return b, p
}

// A right of the matrix says who gets through.
type right struct {
	// own: Alice, who may use VMs, about hers. others: Alice, about Bob's.
	// admin: Carol, about Bob's. root: uid 0, about Bob's. seatless: Dave, who
	// neither sits at the machine nor is in the group, about his own. daemon:
	// Auberge's other daemon, about its own.
	own, others, admin, root, seatless, daemon bool
}

var (
	aboutVMs    = right{own: true, admin: true, root: true}
	ofTheCaller = right{own: true, others: true, root: true} // names no owner: always the caller's
	watching    = right{own: true, others: true, admin: true, root: true}
	aboutHost   = right{own: true, others: true, admin: true, root: true, seatless: true, daemon: true}
	forAdmins   = right{admin: true, root: true}
	forDaemons  = right{daemon: true}
	unreachable = right{} // the bus lets nobody call it
)

// matrix is written by hand, so that a method gets into the service only
// together with somebody's decision who may call it.
var matrix = map[string]right{
	"org.chromium.VmConcierge.StartVm":                      aboutVMs,
	"org.chromium.VmConcierge.StopVm":                       aboutVMs,
	"org.chromium.VmConcierge.GetVmInfo":                    aboutVMs,
	"org.chromium.VmConcierge.ListVms":                      aboutVMs,
	"org.chromium.VmConcierge.CreateDiskImage":              aboutVMs,
	"org.chromium.VmConcierge.DestroyDiskImage":             aboutVMs,
	"org.chromium.VmConcierge.ListVmDisks":                  aboutVMs,
	"org.chromium.VmConcierge.ResizeDiskImage":              aboutVMs,
	"org.chromium.VmConcierge.SuspendVm":                    aboutVMs,
	"org.chromium.VmConcierge.ResumeVm":                     aboutVMs,
	"org.chromium.VmConcierge.SetUpVmUser":                  aboutVMs,
	"org.chromium.VmConcierge.GetVmEnterpriseReportingInfo": aboutVMs,
	"org.chromium.VmConcierge.GetVmLogs":                    aboutVMs,
	"org.chromium.VmConcierge.StartContainer":               aboutVMs,
	"org.chromium.VmConcierge.GetContainerSshKeys":          aboutVMs,
	"org.chromium.VmConcierge.DiskImageStatus":              ofTheCaller,
	"org.chromium.VmConcierge.CancelDiskImageOperation":     ofTheCaller,
	"org.chromium.VmConcierge.StopVmWithoutOwnerId":         ofTheCaller,
	"org.chromium.VmConcierge.StopAllVms":                   ofTheCaller,
	"org.chromium.VmConcierge.SyncVmTimes":                  ofTheCaller,
	"org.chromium.VmConcierge.GetDnsSettings":               aboutHost,
	"org.chromium.VmConcierge.GetVmLaunchAllowed":           aboutHost,

	"io.github.auberge_vm.Concierge1.ConnectVsock":        aboutVMs,
	"io.github.auberge_vm.Concierge1.ListenVsock":         aboutVMs,
	"io.github.auberge_vm.Concierge1.ConfigureVm":         aboutVMs,
	"io.github.auberge_vm.Concierge1.GetVmSettings":       aboutVMs,
	"io.github.auberge_vm.Concierge1.OpenVmLogs":          aboutVMs,
	"io.github.auberge_vm.Concierge1.ListVmEndpoints":     forDaemons,
	"io.github.auberge_vm.Concierge1.OpenVmEndpoints":     forDaemons,
	"io.github.auberge_vm.Concierge1.ConnectVmVsock":      forDaemons,
	"io.github.auberge_vm.Concierge1.TremplinReady":       forDaemons,
	"io.github.auberge_vm.Concierge1.GetContainerKeys":    forDaemons,
	"io.github.auberge_vm.Concierge1.GetState":            ofTheCaller,
	"io.github.auberge_vm.Concierge1.ListOperations":      ofTheCaller,
	"io.github.auberge_vm.Concierge1.GetQuota":            ofTheCaller,
	"io.github.auberge_vm.Concierge1.ListImages":          ofTheCaller,
	"io.github.auberge_vm.Concierge1.GetServiceInfo":      aboutHost,
	"io.github.auberge_vm.Concierge1.GetAllState":         forAdmins,
	"io.github.auberge_vm.Concierge1.ListDiskUsage":       forAdmins,
	"io.github.auberge_vm.Concierge1.UpdateImage":         forAdmins,
	"io.github.auberge_vm.Concierge1.RollbackImage":       forAdmins,
	"io.github.auberge_vm.Concierge1.AllowUncheckedAgent": forAdmins,
	"io.github.auberge_vm.Concierge1.Subscribe":           watching,
	"io.github.auberge_vm.Concierge1.Unsubscribe":         aboutHost,

	"org.chromium.VmCicerone.NotifyVmStarted":            forDaemons,
	"org.chromium.VmCicerone.NotifyVmStopping":           forDaemons,
	"org.chromium.VmCicerone.NotifyVmStopped":            forDaemons,
	"org.chromium.VmCicerone.GetContainerToken":          forDaemons,
	"org.chromium.VmCicerone.IsContainerRunning":         aboutVMs,
	"org.chromium.VmCicerone.ListRunningContainers":      aboutVMs,
	"org.chromium.VmCicerone.GetGarconSessionInfo":       aboutVMs,
	"org.chromium.VmCicerone.StartLxd":                   aboutVMs,
	"org.chromium.VmCicerone.CreateLxdContainer":         aboutVMs,
	"org.chromium.VmCicerone.DeleteLxdContainer":         aboutVMs,
	"org.chromium.VmCicerone.StartLxdContainer":          aboutVMs,
	"org.chromium.VmCicerone.StopLxdContainer":           aboutVMs,
	"org.chromium.VmCicerone.GetLxdContainerUsername":    aboutVMs,
	"org.chromium.VmCicerone.SetUpLxdContainerUser":      aboutVMs,
	"org.chromium.VmCicerone.ExportLxdContainer":         aboutVMs,
	"org.chromium.VmCicerone.CancelExportLxdContainer":   aboutVMs,
	"org.chromium.VmCicerone.ImportLxdContainer":         aboutVMs,
	"org.chromium.VmCicerone.CancelImportLxdContainer":   aboutVMs,
	"org.chromium.VmCicerone.LaunchContainerApplication": aboutVMs,
	"org.chromium.VmCicerone.GetContainerAppIcon":        aboutVMs,
	"org.chromium.VmCicerone.FileSelected":               aboutVMs,
	"org.chromium.VmCicerone.LaunchVshd":                 aboutVMs,
	"org.chromium.VmCicerone.RegisterVshSession":         aboutVMs,
	"org.chromium.VmCicerone.GetVshSession":              aboutVMs,
	"org.chromium.VmCicerone.AddFileWatch":               aboutVMs,
	"org.chromium.VmCicerone.RemoveFileWatch":            aboutVMs,
	"org.chromium.VmCicerone.GetLinuxPackageInfo":        aboutVMs,
	"org.chromium.VmCicerone.InstallLinuxPackage":        aboutVMs,
	"org.chromium.VmCicerone.UninstallPackageOwningFile": aboutVMs,
	"org.chromium.VmCicerone.ApplyAnsiblePlaybook":       aboutVMs,
	"org.chromium.VmCicerone.SetTimezone":                ofTheCaller,
	"org.chromium.VmCicerone.GetDebugInformation":        ofTheCaller,

	"io.github.auberge_vm.Cicerone1.EnsureContainer":  forDaemons,
	"io.github.auberge_vm.Cicerone1.ExportContainer":  aboutVMs,
	"io.github.auberge_vm.Cicerone1.ImportContainer":  aboutVMs,
	"io.github.auberge_vm.Cicerone1.ListContainers":   aboutVMs,
	"io.github.auberge_vm.Cicerone1.ListApplications": aboutVMs,
	"io.github.auberge_vm.Cicerone1.GetServiceInfo":   aboutHost,
	"io.github.auberge_vm.Cicerone1.Subscribe":        watching,
	"io.github.auberge_vm.Cicerone1.Unsubscribe":      aboutHost,

	"org.freedesktop.DBus.Introspectable.Introspect": aboutHost,
	"org.freedesktop.DBus.Peer.Ping":                 aboutHost,
	"org.freedesktop.DBus.Peer.GetMachineId":         unreachable,
	"org.freedesktop.DBus.Properties.Get":            aboutHost,
	"org.freedesktop.DBus.Properties.GetAll":         aboutHost,
	"org.freedesktop.DBus.Properties.Set":            unreachable,
}

// requests are those that would do too much if they came through empty.
var requests = map[string]proto.Message{
	"StartVm":         &pb.StartVmRequest{Vm: &pb.VirtualMachineSpec{Kernel: "/nowhere/vmlinux"}},
	"CreateDiskImage": &pb.CreateDiskImageRequest{DiskSize: 1 << 20},
}

// A node is what introspection tells of an object.
type node struct {
	Name       string `xml:"name,attr"`
	Interfaces []struct {
		Name    string          `xml:"name,attr"`
		Methods []introspection `xml:"method"`
	} `xml:"interface"`
	Nodes []node `xml:"node"`
}

type introspection struct {
	Name string `xml:"name,attr"`
	Args []struct {
		Name      string `xml:"name,attr"`
		Type      string `xml:"type,attr"`
		Direction string `xml:"direction,attr"`
	} `xml:"arg"`
}

// A place is a method of an object of a service.
type place struct {
	service     dbus.Service
	path, iface string
	introspection
}

func (p place) String() string { return p.iface + "." + p.Name }

// walk lists every method of every object of the service, as the service
// itself shows them.
func walk(t *testing.T, c *godbus.Conn, service dbus.Service, path string) (all []place) {
	t.Helper()
	var text string
	if err := c.Object(service.BusName, godbus.ObjectPath(path)).
		Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&text); err != nil {
		t.Fatal(err)
	}
	var n node
	if err := xml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	for _, i := range n.Interfaces {
		for _, m := range i.Methods {
			all = append(all, place{service, path, i.Name, m})
		}
	}
	for _, child := range n.Nodes {
		all = append(all, walk(t, c, service, strings.TrimSuffix(path, "/")+"/"+child.Name)...)
	}
	return all
}

// arguments makes some that fit, about a VM called x of the given owner.
func (p place) arguments(t *testing.T, owner string) (args []any) {
	t.Helper()
	if p.iface == p.service.Interface {
		m, ok := p.service.Method(p.Name)
		if !ok {
			t.Fatalf("%s is not in the table", p)
		}
		if m.Request == nil {
			return nil
		}
		req := proto.Clone(m.Request)
		if r := requests[p.Name]; r != nil {
			req = proto.Clone(r)
		}
		r := req.ProtoReflect()
		for name, value := range map[protoreflect.Name]string{"name": "x", "vm_name": "x", "owner_id": owner, "cryptohome_id": owner} {
			if fd := r.Descriptor().Fields().ByName(name); fd != nil && fd.Kind() == protoreflect.StringKind {
				r.Set(fd, protoreflect.ValueOfString(value))
			}
		}
		b, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		return []any{b}
	}
	for _, arg := range p.Args {
		if arg.Direction != "in" {
			continue
		}
		switch {
		case arg.Type == "s" && arg.Name == "owner_id":
			args = append(args, owner)
		case arg.Type == "s" && arg.Name == "interface":
			args = append(args, p.iface)
		case arg.Type == "s":
			args = append(args, "x")
		case arg.Type == "u":
			args = append(args, uint32(20000))
		case arg.Type == "b":
			args = append(args, false)
		case arg.Type == "a{sv}":
			args = append(args, map[string]godbus.Variant{})
		case arg.Type == "h":
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { null.Close() })
			args = append(args, godbus.UnixFD(null.Fd()))
		case arg.Type == "v":
			args = append(args, godbus.MakeVariant("x"))
		default:
			t.Fatalf("%s has an argument of type %s, which this test cannot make", p, arg.Type)
		}
	}
	return args
}

// Every method that the services show, on every object, by everybody: real
// users on a real bus with our policy, and polkit with our actions and rules.
func TestWhoMayCallWhat(t *testing.T) {
	b, _ := newPolkitBed(t)
	b.startCicerone("--polkit", "required")
	bob := fmt.Sprint(testbed.Bob.UID)
	callers := []struct {
		name  string
		user  testbed.User
		owner string
		may   func(right) bool
	}{
		{"own", testbed.Alice, "", func(r right) bool { return r.own }},
		{"own, by uid", testbed.Alice, fmt.Sprint(testbed.Alice.UID), func(r right) bool { return r.own }},
		{"own, by label", testbed.Alice, "label", func(r right) bool { return r.own }},
		{"others", testbed.Alice, bob, func(r right) bool { return r.others }},
		{"nobody's", testbed.Alice, "4000000000", func(r right) bool { return r.others }},
		{"admin", testbed.Carol, bob, func(r right) bool { return r.admin }},
		{"root", testbed.Root, bob, func(r right) bool { return r.root }},
		{"seatless", testbed.Dave, "", func(r right) bool { return r.seatless }},
		{"daemon", testbed.Cicerone, "", func(r right) bool { return r.daemon }},
		{"daemon", testbed.Service, "", func(r right) bool { return r.daemon }},
	}
	// To each service the other one's user is a daemon, and its own nobody.
	self := map[string]testbed.User{dbus.ConciergeName: testbed.Service, dbus.CiceroneName: testbed.Cicerone}
	seen := map[string]bool{}
	conns := make([]*client, len(callers))
	for i, c := range callers {
		conns[i] = b.client(c.user)
	}
	places := append(walk(t, conns[0].conn, dbus.ConciergeService(nil), "/"), walk(t, conns[0].conn, dbus.CiceroneService(nil), "/")...)
	for _, p := range places {
		r, ok := matrix[p.String()]
		if !ok {
			t.Errorf("nobody has decided who may call %s (at %s)", p, p.path)
			continue
		}
		seen[p.String()] = true
		for i, c := range callers {
			if c.user == self[p.service.BusName] {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := conns[i].conn.Object(p.service.BusName, godbus.ObjectPath(p.path)).
				CallWithContext(ctx, p.String(), 0, p.arguments(t, c.owner)...).Err
			cancel()
			switch name := errorName(err); {
			case err != nil && name == "":
				t.Errorf("%s at %s by %s: %v", p, p.path, c.name, err)
			case (name != accessDenied) != c.may(r):
				t.Errorf("%s at %s by %s: allowed is %t, and should be %t: %v", p, p.path, c.name, name != accessDenied, c.may(r), err)
			case name == invalidArgs:
				t.Errorf("%s at %s by %s: the test's arguments do not fit: %v", p, p.path, c.name, err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(matrix)) {
		if !seen[name] {
			t.Errorf("%s is decided about and is not there", name)
		}
	}
	// Nobody but a service's user has its name, or gets others to listen.
	for name, own := range self {
		for _, u := range []testbed.User{testbed.Alice, testbed.Carol, testbed.Dave, testbed.Cicerone, testbed.Service, testbed.Root} {
			if reply, err := b.client(u).conn.RequestName(name, godbus.NameFlagReplaceExisting); u != own && errorName(err) != accessDenied {
				t.Errorf("%s asks for the name %s: %v, %v", u.Name, name, reply, err)
			}
		}
	}
	b.gone()
}
