package dbus

import (
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestIntrospection(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{}, Options{})
	c := bus.Connect(t)
	for _, test := range []struct{ path, golden string }{
		{ConciergePath, "testdata/concierge.xml"},
		{"/org/chromium", "testdata/chromium.xml"},
		{"/org", "testdata/org.xml"},
		{"/", "testdata/root.xml"},
	} {
		t.Run(test.path, func(t *testing.T) {
			var got string
			if err := c.Object(ConciergeName, dbus.ObjectPath(test.path)).Call(introspectableName+".Introspect", 0).Store(&got); err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(test.golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(test.golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestATableWithAMistakeIsNotExported(t *testing.T) {
	h := Concierge(&handler{})
	ok := method("StopVm", policy.RightOwn, h, Concierge.StopVm)
	with := func(change func(*Method)) Method {
		m := ok
		change(&m)
		return m
	}
	own := func(change func(*PlainMethod)) []OwnInterface {
		o := Concierge1Interface(&handler{})
		change(&o.Methods[0])
		return []OwnInterface{o}
	}
	service := func(methods ...Method) []Service {
		return []Service{{BusName: ConciergeName, Path: ConciergePath, Interface: ConciergeInterface, Methods: methods}}
	}
	for _, test := range []struct {
		name, want string
		services   []Service
		own        []OwnInterface
	}{
		{"none", "", service(ok), own(func(*PlainMethod) {})},
		{"a method without a right", "right", service(with(func(m *Method) { m.Right = "" })), nil},
		{"a method with an unknown right", "right", service(with(func(m *Method) { m.Right = "all" })), nil},
		{"a method without a handler", "handler", service(method[Concierge]("StopVm", policy.RightOwn, nil, Concierge.StopVm)), nil},
		{"a request without an owner", "owner", service(with(func(m *Method) { m.Request = new(conciergepb.VmInfo) })), nil},
		{"no request where an owner is needed", "owner", service(with(func(m *Method) { m.Request = nil })), nil},
		{"a method twice", "twice", service(ok, ok), nil},
		{"an interface twice", "twice", append(service(ok), service(ok)...), nil},
		{"a method of ours without a right", "right", nil, own(func(m *PlainMethod) { m.Right = "" })},
		{"a method of ours without an owner", "owner_id", nil, own(func(m *PlainMethod) { m.In = m.In[:1] })},
		{"a method of ours without a handler", "handler", nil, []OwnInterface{Concierge1Interface(nil)}},
		{"a method of ours with arguments that can't be read", "type", nil, own(func(m *PlainMethod) { m.In = append(m.In, Arg{"x", "as"}) })},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(test.services, test.own, Options{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestATableDescribesWithoutAHandler(t *testing.T) {
	for _, m := range ConciergeService(nil).Methods {
		if m.handle != nil || m.Request == nil && m.Right == policy.RightOwn {
			t.Errorf("%s: %+v", m.Name, m)
		}
		if m.Request == nil {
			continue
		}
		if _, err := proto.Marshal(m.Request); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryMethodReachesItsHandler(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{}, Options{})
	c := bus.Connect(t)
	for _, m := range ConciergeService(nil).Methods {
		if m.Request == nil || failedResponse(m.Response, errUnset) == nil {
			var args []any
			if m.Request != nil {
				args = append(args, []byte{})
			}
			if _, err := invoke(t, c, ConciergeInterface, m.Name, args...); err == nil || !strings.Contains(err.Error(), errUnset.Error()) {
				t.Errorf("%s: %v", m.Name, err)
			}
			continue
		}
		resp := m.Response.ProtoReflect().New()
		if err := callProto(t, c, m.Name, m.Request, resp.Interface()); err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		// The handlers fail, and every response can say so.
		text := prototext.Format(resp.Interface())
		if fd := resp.Descriptor().Fields().ByName("failure_reason"); fd != nil && resp.Get(fd).String() != errUnset.Error() {
			t.Errorf("%s: %s", m.Name, text)
		}
	}
}

func TestFailuresInResponses(t *testing.T) {
	reason := errors.New("a reason\x00\xff " + strings.Repeat("x", 2*maxErrorText))
	for _, test := range []struct {
		prototype, want proto.Message
	}{
		{&conciergepb.StartVmResponse{}, &conciergepb.StartVmResponse{FailureReason: "r", Status: conciergepb.VmStatus_VM_STATUS_FAILURE}},
		{&conciergepb.CreateDiskImageResponse{}, &conciergepb.CreateDiskImageResponse{FailureReason: "r", Status: conciergepb.DiskImageStatus_DISK_STATUS_FAILED}},
		{&conciergepb.SuccessFailureResponse{}, &conciergepb.SuccessFailureResponse{FailureReason: "r"}},
		{&conciergepb.ListVmDisksResponse{}, &conciergepb.ListVmDisksResponse{FailureReason: "r"}},
		{&conciergepb.GetVmInfoResponse{}, &conciergepb.GetVmInfoResponse{}},
		{&conciergepb.VmInfo{}, nil}, // its status has no value for a failure
		{&conciergepb.ContainerSshKeysResponse{}, nil},
	} {
		t.Run(string(test.prototype.ProtoReflect().Descriptor().Name()), func(t *testing.T) {
			got := failedResponse(test.prototype, errors.New("r"))
			if test.want == nil {
				if got != nil && test.prototype.ProtoReflect().Descriptor().Name() != "VmInfo" {
					t.Error(got)
				}
				return
			}
			if !proto.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			long, err := proto.Marshal(failedResponse(test.prototype, reason))
			if err != nil || len(long) > maxErrorText+100 {
				t.Errorf("%d bytes, %v", len(long), err)
			}
		})
	}
}

// busPolicy is what a bus policy file says, as far as it concerns us.
type busPolicy struct {
	Policies []struct {
		Context string       `xml:"context,attr"`
		User    string       `xml:"user,attr"`
		Allow   []policyRule `xml:"allow"`
		Deny    []policyRule `xml:"deny"`
	} `xml:"policy"`
}

type policyRule struct {
	Own         string `xml:"own,attr"`
	Destination string `xml:"send_destination,attr"`
	Interface   string `xml:"send_interface,attr"`
	Member      string `xml:"send_member,attr"`
	Type        string `xml:"send_type,attr"`
}

func TestPolicyFileAllowsTheTableAndNothingElse(t *testing.T) {
	desktop := func(name, iface string, members ...string) (rules []policyRule) {
		for _, m := range members {
			rules = append(rules, policyRule{Destination: name, Interface: iface, Member: m, Type: "method_call"})
		}
		return rules
	}
	for _, test := range []struct {
		service Service
		own     OwnInterface
		// user is the service's, daemon that of the other one.
		user, daemon string
		// calls are what the service may send, names what everybody may own.
		calls []policyRule
		names []string
	}{
		{service: ConciergeService(nil), own: Concierge1Interface(nil), user: "auberge", daemon: "auberge-cicerone"},
		{service: CiceroneService(nil), own: Cicerone1Interface(nil), user: "auberge-cicerone", daemon: "auberge",
			calls: append(desktop(VMApplicationsName, VMApplicationsInterface, "UpdateApplicationList", "UpdateMimeTypes", "LaunchTerminal", "SelectFile"),
				desktop(URLHandlerName, URLHandlerInterface, "OpenUrl")...),
			names: []string{VMApplicationsName, URLHandlerName}},
	} {
		name := test.service.BusName
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile("../policy/bus/" + name + ".conf")
			if err != nil {
				t.Fatal(err)
			}
			var file busPolicy
			if err := xml.Unmarshal(text, &file); err != nil {
				t.Fatal(err)
			}
			// Who may send what: everybody, or the other daemon only.
			want := map[string]string{
				introspectableName + ".Introspect": "", peerName + ".Ping": "",
				propertiesName + ".Get": "", propertiesName + ".GetAll": "",
			}
			add := func(iface, member string, right policy.Right) {
				who := ""
				if right == policy.RightDaemon {
					who = test.daemon
				}
				want[iface+"."+member] = who
			}
			for _, m := range test.service.Methods {
				add(test.service.Interface, m.Name, m.Right)
			}
			for _, m := range test.own.Methods {
				add(test.own.Name, m.Name, m.Right)
			}
			got := map[string]string{}
			var names []string
			allowed := func(rules []policyRule, who string) {
				for _, rule := range rules {
					if rule.Own != "" && rule == (policyRule{Own: rule.Own}) && who == "" {
						names = append(names, rule.Own)
						continue
					}
					if rule.Own != "" || rule.Destination != name || rule.Type != "method_call" || rule.Interface == "" || rule.Member == "" {
						t.Errorf("a rule allows too much: %+v", rule)
					}
					got[rule.Interface+"."+rule.Member] = who
				}
			}
			for _, p := range file.Policies {
				switch {
				case p.User == test.user && p.Context == "":
					if want := append([]policyRule{{Own: name}}, test.calls...); fmt.Sprint(p.Allow) != fmt.Sprint(want) || len(p.Deny) != 0 {
						t.Errorf("the service's user: %+v", p)
					}
				case p.User == test.daemon && p.Context == "":
					if len(p.Deny) != 0 {
						t.Errorf("the other daemon's user: %+v", p)
					}
					allowed(p.Allow, p.User)
				case p.User == "" && p.Context == "default":
					deny := policyRule{Destination: name, Type: "method_call"}
					if fmt.Sprint(p.Deny) != fmt.Sprint([]policyRule{deny}) {
						t.Errorf("calls are not denied by default: %+v", p.Deny)
					}
					allowed(p.Allow, "")
				default:
					t.Errorf("an unexpected policy: %+v", p)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("table and policy differ (-table +policy):\n%s", diff)
			}
			if diff := cmp.Diff(test.names, names); diff != "" {
				t.Errorf("names that everybody may own:\n%s", diff)
			}
		})
	}
}
