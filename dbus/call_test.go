package dbus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// pipes returns n pipes' read ends, each with its number to be read from it.
func pipes(t *testing.T, n int) []*os.File {
	t.Helper()
	var list []*os.File
	for i := range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, i)
		w.Close()
		t.Cleanup(func() { r.Close() })
		list = append(list, r)
	}
	return list
}

func unixFDs(files []*os.File) []dbus.UnixFD {
	list := []dbus.UnixFD{}
	for _, f := range files {
		list = append(list, dbus.UnixFD(f.Fd()))
	}
	return list
}

// readAll is a StartVm handler that answers with what is in the descriptors.
func readAll(_ context.Context, _ policy.Subject, req *conciergepb.StartVmRequest, fds []*os.File) (*conciergepb.StartVmResponse, error) {
	got := req.Name
	for _, f := range fds {
		text, err := io.ReadAll(f)
		if err != nil {
			return nil, err
		}
		got += " " + string(text)
	}
	return &conciergepb.StartVmResponse{Success: true, FailureReason: got}, nil
}

func TestArgumentShapes(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{startVm: readAll, getVmInfo: echo}, Options{})
	c := bus.Connect(t)

	start := func(t *testing.T, more ...any) string {
		var resp conciergepb.StartVmResponse
		if err := callProto(t, c, "StartVm", &conciergepb.StartVmRequest{Name: "vm"}, &resp, more...); err != nil {
			t.Fatal(err)
		}
		return resp.FailureReason
	}
	for _, test := range []struct {
		name, want string
		args       []any
	}{
		{"the message alone", "vm", nil},
		{"an array of no descriptors", "vm", []any{[]dbus.UnixFD{}}},
		{"an array of descriptors in their order", "vm 0 1 2", []any{unixFDs(pipes(t, 3))}},
		{"a bare descriptor as in the seed", "vm 0", []any{unixFDs(pipes(t, 1))[0]}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := start(t, test.args...); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}

	t.Run("as many descriptors as the bus takes", func(t *testing.T) {
		if got := start(t, unixFDs(pipes(t, 16))); got != "vm 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15" {
			t.Error(got)
		}
	})
	t.Run("calls with and without descriptors do not mix them up", func(t *testing.T) {
		data, _ := proto.Marshal(&conciergepb.StartVmRequest{Name: "vm"})
		obj := c.Object(ConciergeName, ConciergePath)
		var calls []*dbus.Call
		for i := range 60 {
			files := pipes(t, i%3)
			calls = append(calls, obj.Go(ConciergeInterface+".StartVm", 0, nil, data, unixFDs(files)))
		}
		for i, pending := range calls {
			<-pending.Done
			var resp conciergepb.StartVmResponse
			if pending.Err != nil {
				t.Fatal(pending.Err)
			}
			proto.Unmarshal(pending.Body[0].([]byte), &resp)
			if want := []string{"vm", "vm 0", "vm 0 1"}[i%3]; resp.FailureReason != want {
				t.Errorf("call %d: %q, want %q", i, resp.FailureReason, want)
			}
		}
	})
}

func TestWrongArguments(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{startVm: readAll, getVmInfo: echo, configureVm: func(context.Context, policy.Subject, string, VMSettings) error { return nil }}, Options{})
	c := bus.Connect(t)
	fds := unixFDs(pipes(t, 2))
	info := []byte{}
	settings := func(kv ...any) map[string]dbus.Variant {
		m := map[string]dbus.Variant{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = dbus.MakeVariant(kv[i+1])
		}
		return m
	}
	for _, test := range []struct {
		name, iface, member string
		args                []any
	}{
		{"no argument", ConciergeInterface, "GetVmInfo", nil},
		{"a string", ConciergeInterface, "GetVmInfo", []any{"vm"}},
		{"an array of integers", ConciergeInterface, "GetVmInfo", []any{[]uint32{1}}},
		{"a surplus argument", ConciergeInterface, "GetVmInfo", []any{info, "more"}},
		{"descriptors that the method does not take", ConciergeInterface, "GetVmInfo", []any{info, fds}},
		{"a descriptor that the method does not take", ConciergeInterface, "GetVmInfo", []any{info, fds[0]}},
		{"two bare descriptors", ConciergeInterface, "StartVm", []any{info, fds[0], fds[1]}},
		{"descriptors first", ConciergeInterface, "StartVm", []any{fds, info}},
		{"integers for descriptors", ConciergeInterface, "StartVm", []any{info, []uint32{0}}},
		{"bytes that are no message", ConciergeInterface, "GetVmInfo", []any{[]byte{0xff, 0xff, 0xff}}},
		{"a name that is not UTF-8", ConciergeInterface, "GetVmInfo", []any{[]byte{0x0a, 1, 0xff}}},
		{"a message cut off", ConciergeInterface, "GetVmInfo", []any{[]byte{0x0a, 5, 'v'}}},
		{"arguments for a method without", Concierge1Name, "Subscribe", []any{"x"}},
		{"a port of the wrong type", Concierge1Name, "ConnectVsock", []any{"vm", "", uint64(1)}},
		{"an unknown setting", Concierge1Name, "ConfigureVm", []any{"vm", "", settings("disk", uint64(1))}},
		{"a setting of the wrong type", Concierge1Name, "ConfigureVm", []any{"vm", "", settings("memory", uint32(1))}},
		{"a setting of a strange type", Concierge1Name, "ConfigureVm", []any{"vm", "", settings("memory", []string{"a"})}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := invoke(t, c, test.iface, test.member, test.args...)
			wantError(t, err, errInvalidArgs)
		})
	}
	t.Run("random bytes never do more than fail", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range 300 {
			data := make([]byte, rng.IntN(200))
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			_, err := invoke(t, c, ConciergeInterface, "GetVmInfo", data)
			if got := errorName(err); got != errInvalidArgs && got != "success" {
				t.Fatalf("% x: %v", data, err)
			}
		}
	})
	t.Run("and everybody is still served", func(t *testing.T) {
		var resp conciergepb.GetVmInfoResponse
		if err := callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{Name: "vm"}, &resp); err != nil || resp.VmInfo.PermissionToken != "vm" {
			t.Fatal(&resp, err)
		}
	})
}

func TestUnknownTargets(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{getVmInfo: echo}, Options{})
	c := bus.Connect(t)
	for _, test := range []struct{ name, path, method, want string }{
		{"object", "/org/chromium/Other", ConciergeInterface + ".GetVmInfo", errUnknownObject},
		{"interface", ConciergePath, "org.chromium.Other.GetVmInfo", errUnknownInterface},
		{"interface on a parent", "/org/chromium", ConciergeInterface + ".GetVmInfo", errUnknownInterface},
		{"method", ConciergePath, ConciergeInterface + ".StartArcVm", errUnknownMethod},
		{"method without interface", ConciergePath, "StartArcVm", errUnknownMethod},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := c.Object(ConciergeName, dbus.ObjectPath(test.path)).Call(test.method, 0, []byte{}).Err
			wantError(t, err, test.want)
		})
	}
	t.Run("a call without interface finds its member", func(t *testing.T) {
		msg := &dbus.Message{
			Type: dbus.TypeMethodCall,
			Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldDestination: dbus.MakeVariant(ConciergeName),
				dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(ConciergePath)),
				dbus.FieldMember:      dbus.MakeVariant("GetVmInfo"),
				dbus.FieldSignature:   dbus.MakeVariant(dbus.ParseSignatureMust("ay")),
			},
			Body: []any{[]byte{}},
		}
		pending := c.Send(msg, make(chan *dbus.Call, 1))
		if done := <-pending.Done; done.Err != nil {
			t.Fatal(done.Err)
		}
	})
}

func TestNoReplyExpected(t *testing.T) {
	bus := dbustest.Lax(t)
	called := make(chan string, 4)
	serve(t, bus, &handler{
		getVmInfo: func(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
			called <- req.Name
			return echo(ctx, s, req)
		},
	}, Options{})
	c := bus.Connect(t)
	// A client that listens to everything sent to it: what comes for a call
	// without reply would be seen before the answer to the call after it.
	seen := make(chan *dbus.Message, 16)
	c.Eavesdrop(seen)
	obj := c.Object(ConciergeName, ConciergePath)
	data, _ := proto.Marshal(&conciergepb.GetVmInfoRequest{Name: "silent"})
	obj.Go(ConciergeInterface+".GetVmInfo", dbus.FlagNoReplyExpected, nil, data)
	obj.Go(ConciergeInterface+".NoSuchMethod", dbus.FlagNoReplyExpected, nil, data)
	if got := <-called; got != "silent" {
		t.Fatal(got)
	}
	data, _ = proto.Marshal(&conciergepb.GetVmInfoRequest{Name: "loud"})
	obj.Go(ConciergeInterface+".GetVmInfo", 0, make(chan *dbus.Call, 1), data)
	for m := range seen {
		if m.Type == dbus.TypeError {
			t.Fatal("an error for a call that expects none:", m)
		}
		if m.Type == dbus.TypeMethodReply {
			if !bytes.Contains(m.Body[0].([]byte), []byte("loud")) {
				t.Fatal("a reply to a call that expects none")
			}
			break
		}
	}
	c.Eavesdrop(nil)
}

func TestListVmDisksAnswersBothGenerations(t *testing.T) {
	method, _ := ConciergeService(nil).Method("ListVmDisks")
	for _, test := range []struct {
		req  *conciergepb.ListVmDisksRequest
		want proto.Message
	}{
		{&conciergepb.ListVmDisksRequest{CryptohomeId: "x"}, &conciergepb.ListVmDisksSeedResponse{}},
		{&conciergepb.ListVmDisksRequest{AllLocations: true}, &conciergepb.ListVmDisksResponse{}},
		{&conciergepb.ListVmDisksRequest{VmName: "x"}, &conciergepb.ListVmDisksResponse{}},
	} {
		got := method.ResponseFor(test.req).ProtoReflect().Descriptor().FullName()
		if diff := cmp.Diff(test.want.ProtoReflect().Descriptor().FullName(), got); diff != "" {
			t.Errorf("%v: %s", test.req, diff)
		}
	}
}
