package dbus

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestMethodsWithoutAnArgument(t *testing.T) {
	bus := dbustest.Lax(t)
	callers := make(chan policy.Subject, 2)
	serve(t, bus, &handler{
		stopAllVms: func(_ context.Context, s policy.Subject) error {
			callers <- s
			return nil
		},
		syncVmTimes: func(_ context.Context, s policy.Subject) (*conciergepb.SyncVmTimesResponse, error) {
			return &conciergepb.SyncVmTimesResponse{Requests: 2, Failures: 1, FailureReason: []string{"no"}}, nil
		},
	}, Options{})
	c := bus.Connect(t)
	results, err := invoke(t, c, ConciergeInterface, "StopAllVms")
	if err != nil || len(results) != 0 {
		t.Errorf("%v, %v", results, err)
	}
	uid := uint32(os.Geteuid())
	if s := <-callers; s.Caller.UID != uid || s.Owner.UID != uid || !s.Owner.All {
		t.Errorf("called as %+v", s)
	}
	results, err = invoke(t, c, ConciergeInterface, "SyncVmTimes")
	if err != nil {
		t.Fatal(err)
	}
	var resp conciergepb.SyncVmTimesResponse
	if err := proto.Unmarshal(results[0].([]byte), &resp); err != nil || resp.Requests != 2 || resp.FailureReason[0] != "no" {
		t.Errorf("%v, %v", &resp, err)
	}
	for _, method := range []string{"StopAllVms", "SyncVmTimes"} {
		_, err := invoke(t, c, ConciergeInterface, method, []byte{})
		wantError(t, err, errInvalidArgs)
	}
	if len(callers) != 0 {
		t.Error("a call with an argument reached the handler")
	}
}

func TestGetState(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{getState: func(context.Context, policy.Subject) (State, error) {
		return State{Instance: "i", Sequence: 1 << 40, VMs: []map[string]any{{
			"name": "vm", "pid": uint32(7), "memory": uint64(8), "running": true, "reason": "a\x00b\xff",
		}}}, nil
	}}, Options{})
	results, err := invoke(t, bus.Connect(t), Concierge1Name, "GetState")
	if err != nil {
		t.Fatal(err)
	}
	vms := results[2].([]map[string]dbus.Variant)
	// What a guest or a file system said may be no D-Bus string.
	want := map[string]any{"name": "vm", "pid": uint32(7), "memory": uint64(8), "running": true, "reason": callerText("a\x00b\xff")}
	got := map[string]any{}
	for k, v := range vms[0] {
		got[k] = v.Value()
	}
	if diff := cmp.Diff(want, got); diff != "" || results[0] != "i" || results[1] != uint64(1<<40) || len(results[3].([]map[string]dbus.Variant)) != 0 {
		t.Errorf("%v: %s", results, diff)
	}
}

func TestSignalsOfOurOwn(t *testing.T) {
	bus := dbustest.System(t)
	s, _ := serve(t, bus, &handler{}, Options{})
	owner, other := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Bin)
	heard := map[string]chan *dbus.Signal{"owner": make(chan *dbus.Signal, 10), "other": make(chan *dbus.Signal, 10)}
	owner.Signal(heard["owner"])
	other.Signal(heard["other"])
	for _, c := range []*dbus.Conn{owner, other} { // the service has heard of both
		if _, err := invoke(t, c, peerName, "Ping"); err != nil {
			t.Fatal(err)
		}
	}
	what := map[string]any{"name": "vm", "pid": uint32(7)}
	for member, values := range map[string][]any{
		VmStartedSignal: {"i", uint64(1), what}, // not one of ours
		"Nothing":       {},
		VmChanged:       {"i", uint64(1)}, // and too few
	} {
		if err := s.EmitOwn(t.Context(), dbustest.Daemon.UID, member, values...); err == nil {
			t.Errorf("%s was sent with %v", member, values)
		}
	}
	if err := s.EmitOwn(t.Context(), dbustest.Daemon.UID, VmChanged, "i", uint64(5), what); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*dbus.Conn{owner, other} {
		if _, err := invoke(t, c, peerName, "Ping"); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string][]string{}
	for who, ch := range heard {
		for len(ch) > 0 {
			if sig := <-ch; sig.Name == Concierge1Name+"."+VmChanged {
				d := sig.Body[2].(map[string]dbus.Variant)
				got[who] = append(got[who], fmt.Sprint(sig.Path, sig.Body[0], sig.Body[1], d["name"].Value(), d["pid"].Value()))
			}
		}
	}
	want := map[string][]string{"owner": {fmt.Sprint(dbus.ObjectPath(ConciergePath), "i", 5, "vm", 7)}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPublicSignalsAreBroadcast(t *testing.T) {
	bus := dbustest.System(t)
	s, _ := serve(t, bus, &handler{}, Options{})
	c := bus.ConnectAs(t, dbustest.Bin)
	ch := make(chan *dbus.Signal, 10)
	c.Signal(ch)
	if err := c.AddMatchSignal(dbus.WithMatchInterface(ConciergeInterface)); err != nil {
		t.Fatal(err)
	}
	if err := s.Emit(t.Context(), 0, DnsSettingsChanged, &conciergepb.DnsSettings{Nameservers: []string{"192.0.2.1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := invoke(t, c, peerName, "Ping"); err != nil {
		t.Fatal(err)
	}
	for len(ch) > 0 {
		if sig := <-ch; sig.Name == ConciergeInterface+"."+DnsSettingsChanged {
			return
		}
	}
	t.Error("nobody heard it")
}
