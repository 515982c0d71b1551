package vmc

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// heard reads a line of the monitor's output.
func heard(t *testing.T, text string) (signal, iface string, payload map[string]any) {
	t.Helper()
	var l struct {
		Time, Signal, Interface string
		Payload                 map[string]any
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil || l.Time == "" {
		t.Fatalf("%q: %v", text, err)
	}
	return l.Signal, l.Interface, l.Payload
}

func emit(t *testing.T, s *dbus.Server, member string, msg proto.Message) {
	t.Helper()
	if err := s.Emit(t.Context(), 4242, member, msg); err != nil {
		t.Fatal(err)
	}
}

func TestMonitor(t *testing.T) {
	bus := dbustest.Lax(t)
	s, stop := (&fake{}).serve(t, bus, dbus.Options{})
	p := begin(t, "monitor", "--bus", bus.Address, "--all")
	p.errs.next("listening")

	emit(t, s, dbus.VmStoppedSignal, &pb.VmStoppedSignal{Name: "<x>", OwnerId: "64101", Cid: 32, Reason: pb.VmStopReason_STOP_VM_REQUESTED})
	text := p.out.next("<x>")
	signal, iface, payload := heard(t, text)
	want := map[string]any{"name": "<x>", "owner_id": "64101", "cid": "32", "reason": "STOP_VM_REQUESTED"}
	if diff := cmp.Diff(want, payload); signal != "VmStoppedSignal" || iface != dbus.ConciergeInterface || diff != "" {
		t.Errorf("%s: %s", text, diff)
	}

	vm := map[string]any{"name": "x", "cid": uint32(7), "nested": map[string]any{"a": true}}
	if err := s.EmitOwn(t.Context(), 4242, dbus.VmChanged, "run-1", uint64(1)<<40, vm); err != nil {
		t.Fatal(err)
	}
	signal, iface, payload = heard(t, p.out.next("run-1"))
	want = map[string]any{"instance": "run-1", "sequence": float64(1 << 40),
		"vm": map[string]any{"name": "x", "cid": float64(7), "nested": map[string]any{"a": true}}}
	if diff := cmp.Diff(want, payload); signal != "VmChanged" || iface != dbus.Concierge1Name || diff != "" {
		t.Error(signal, iface, diff)
	}

	// What somebody else says in the service's name is not believed.
	forger := bus.Connect(t)
	forged, err := proto.Marshal(&pb.VmStartedSignal{Name: "forged"})
	if err != nil {
		t.Fatal(err)
	}
	if err := forger.Emit(dbus.ConciergePath, dbus.ConciergeInterface+"."+dbus.VmStartedSignal, forged); err != nil {
		t.Fatal(err)
	}
	if err := forger.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil { // it is on its way
		t.Fatal(err)
	}
	emit(t, s, dbus.VmStartedSignal, &pb.VmStartedSignal{Name: "real"})
	p.out.next("real")

	// The service goes and comes back.
	stop()
	p.errs.next("has left the bus")
	s, _ = (&fake{}).serve(t, bus, dbus.Options{})
	p.errs.next("is on the bus")
	emit(t, s, dbus.VmStartedSignal, &pb.VmStartedSignal{Name: "again"})
	p.out.next("again")

	p.interrupt()
	p.ends(0)
}

// Every signal of a burst comes, in its order.
func TestMonitorKeepsOrder(t *testing.T) {
	bus := dbustest.Lax(t)
	s, _ := (&fake{}).serve(t, bus, dbus.Options{BroadcastSignals: true})
	p := begin(t, "monitor", "--bus", bus.Address)
	for line := ""; !strings.Contains(line, "listening"); {
		line = p.errs.next()
	}
	for i := range 2000 {
		emit(t, s, dbus.VmStartingUpSignal, &pb.VmStartingUpSignal{Name: "x", Cid: int64(i)})
	}
	for i := range 2000 {
		_, _, payload := heard(t, p.out.next())
		var cid int
		if err := json.Unmarshal([]byte(payload["cid"].(string)), &cid); err != nil || cid != i {
			t.Fatalf("signal %v in the place of %d: %v", payload["cid"], i, err)
		}
	}
	p.interrupt()
	p.ends(0)
}

func TestMonitorFilters(t *testing.T) {
	bus := dbustest.Lax(t)
	// It waits for a service that is not there yet.
	p := begin(t, "monitor", "--bus", bus.Address, "--all", "--vm", "x", "--until", "VmStopped")
	p.errs.next("waiting for it")
	s, _ := (&fake{}).serve(t, bus, dbus.Options{})
	p.errs.next("is on the bus")
	emit(t, s, dbus.VmStoppedSignal, &pb.VmStoppedSignal{Name: "y"})
	emit(t, s, dbus.VmStoppingSignal, &pb.VmStoppingSignal{Name: "x"})
	emit(t, s, dbus.VmStoppedSignal, &pb.VmStoppedSignal{Name: "x"})
	p.out.next("VmStoppingSignal", `"x"`)
	p.out.next("VmStoppedSignal", `"x"`)
	p.ends(0)
}

func TestMonitorEndsWithItsBus(t *testing.T) {
	bus := dbustest.Lax(t)
	(&fake{}).serve(t, bus, dbus.Options{})
	p := begin(t, "monitor", "--bus", bus.Address, "--all")
	p.errs.next("listening")
	bus.Stop()
	for line := ""; !strings.Contains(line, "the bus has ended"); {
		line = p.errs.next()
	}
	p.ends(5)
}

func TestMonitorUsage(t *testing.T) {
	if _, errs, code := vmc(t, "", "monitor", "--until", "VmStoped"); code != 2 || !strings.Contains(errs, "did you mean VmStopped?") {
		t.Errorf("%d: %s", code, errs)
	}
}
