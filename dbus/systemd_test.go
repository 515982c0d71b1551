package dbus

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// fakeSystemd stands in for systemd's manager; what the real one does is for
// the test host.
type fakeSystemd struct {
	conn *dbus.Conn

	mu    sync.Mutex
	jobs  uint32
	calls []string
	set   map[string]dbus.Variant
	// hold keeps jobs from ending; others end before their call is answered.
	hold bool
	// result is how jobs end.
	result string
	// behind has stop jobs wait for those of other units, as systemd's do
	// unless they ignore dependencies.
	behind bool
}

func newFakeSystemd(t *testing.T, bus *dbustest.Bus) *fakeSystemd {
	t.Helper()
	f := &fakeSystemd{conn: bus.Connect(t), result: "done", set: map[string]dbus.Variant{}}
	if err := f.conn.Export(f, systemdPath, systemdManager); err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.RequestName(systemdName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return f
}

// behave says whether jobs end, and how.
func (f *fakeSystemd) behave(hold bool, result string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold, f.result = hold, result
}

func (f *fakeSystemd) note(call ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.Join(call, " "))
}

func (f *fakeSystemd) job(unit string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(unit, "unknown") {
		return "", dbus.NewError(errNoSuchUnit, []any{"Unit " + unit + " not loaded."})
	}
	f.jobs++
	path := dbus.ObjectPath(systemdPath + "/job/" + string(rune('0'+f.jobs)))
	if !f.hold {
		// Of another job of the unit, and then of this one.
		f.conn.Emit(systemdPath, systemdManager+".JobRemoved", uint32(99), dbus.ObjectPath(systemdPath+"/job/99"), unit, "canceled")
		f.conn.Emit(systemdPath, systemdManager+".JobRemoved", f.jobs, path, unit, f.result)
	}
	return path, nil
}

func (f *fakeSystemd) Subscribe() *dbus.Error { f.note("Subscribe"); return nil }

func (f *fakeSystemd) StartUnit(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	f.note("start", unit, mode)
	return f.job(unit)
}

func (f *fakeSystemd) StopUnit(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	f.note("stop", unit, mode)
	f.mu.Lock()
	waits := f.behind && mode != "ignore-dependencies"
	f.mu.Unlock()
	if waits {
		return systemdPath + "/job/98", nil
	}
	return f.job(unit)
}

func (f *fakeSystemd) KillUnit(unit, who string, signal int32) *dbus.Error {
	f.note("kill", unit, who)
	if signal != 9 {
		return dbus.NewError("org.example.Wrong", nil)
	}
	if unit == "idle.service" {
		return dbus.NewError(errNoSuchProcess, []any{"no process to kill"})
	}
	return nil
}

func (f *fakeSystemd) SetUnitProperties(unit string, runtime bool, properties []struct {
	Name  string
	Value dbus.Variant
}) *dbus.Error {
	if !runtime {
		return dbus.NewError("org.example.Wrong", nil)
	}
	f.note("set", unit)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range properties {
		f.set[p.Name] = p.Value
	}
	return nil
}

func TestSystemd(t *testing.T) {
	bus := dbustest.Lax(t)
	f := newFakeSystemd(t, bus)
	s := &Systemd{Bus: bus.Address}
	defer s.Close()
	for what, err := range map[string]error{
		"start":        s.StartUnit(t.Context(), "vm@a.service"),
		"stop":         s.StopUnit(t.Context(), "vm@a.service"),
		"stop unknown": s.StopUnit(t.Context(), "unknown.service"),
		"kill":         s.KillUnit(t.Context(), "vm@a.service"),
		"kill idle":    s.KillUnit(t.Context(), "idle.service"),
		"set":          s.SetProperties(t.Context(), "vm@a.service", map[string]any{"MemoryMax": uint64(1 << 40), "TasksMax": uint64(7)}),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.StartUnit(t.Context(), "unknown.service"); err == nil || !strings.Contains(err.Error(), "not loaded") {
		t.Errorf("start of a unit that is not there: %v", err)
	}
	f.behave(false, "timeout")
	if err := s.StartUnit(t.Context(), "vm@b.service"); err == nil || !strings.Contains(err.Error(), `"timeout"`) {
		t.Errorf("a job that failed: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := cmp.Diff(map[string]dbus.Variant{"MemoryMax": dbus.MakeVariant(uint64(1 << 40)), "TasksMax": dbus.MakeVariant(uint64(7))}, f.set,
		cmp.Comparer(func(a, b dbus.Variant) bool { return a.Value() == b.Value() && a.Signature() == b.Signature() })); d != "" {
		t.Error(d)
	}
	if !strings.Contains(strings.Join(f.calls, ","), "start vm@a.service fail") || !strings.Contains(strings.Join(f.calls, ","), "stop vm@a.service ignore-dependencies") {
		t.Errorf("the calls were %q", f.calls)
	}
}

// At shutdown a VM's unit is to be stopped after auberge-guests.service. That
// one is being stopped already, and waits for the VM.
func TestSystemdStopsBeforeItsTurn(t *testing.T) {
	bus := dbustest.Lax(t)
	f := newFakeSystemd(t, bus)
	f.mu.Lock()
	f.behind = true
	f.mu.Unlock()
	s := &Systemd{Bus: bus.Address}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.StopUnit(ctx, "vm@a.service"); err != nil {
		t.Error(err)
	}
}

// Whoever says that a job has ended, only systemd is believed, and a job that
// does not end is not waited for longer than its caller does.
func TestSystemdImpostor(t *testing.T) {
	bus := dbustest.Lax(t)
	f := newFakeSystemd(t, bus)
	f.behave(true, "")
	s := &Systemd{Bus: bus.Address}
	defer s.Close()
	if err := s.KillUnit(t.Context(), "idle.service"); err != nil { // it is connected
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- s.StartUnit(ctx, "vm@a.service") }()
	impostor := bus.Connect(t)
	for range 100 {
		if err := impostor.Emit(systemdPath, systemdManager+".JobRemoved", uint32(1), dbus.ObjectPath(systemdPath+"/job/1"), "vm@a.service", "done"); err != nil {
			t.Fatal(err)
		}
	}
	// What was sent before has arrived when this is answered.
	if err := impostor.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	if err := s.KillUnit(t.Context(), "idle.service"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("the start ended with %v", err)
	}
}

// A bus that was restarted is found again, and whoever waited is told.
func TestSystemdBusRestarts(t *testing.T) {
	bus := dbustest.Lax(t)
	f := newFakeSystemd(t, bus)
	f.behave(true, "")
	s := &Systemd{Bus: bus.Address}
	defer s.Close()
	started := make(chan error, 1)
	go func() { started <- s.StartUnit(t.Context(), "vm@a.service") }()
	deadline := time.Now().Add(patience)
	for tick := time.Tick(time.Millisecond); ; <-tick {
		f.mu.Lock()
		jobs := f.jobs
		f.mu.Unlock()
		if jobs > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the call does not arrive")
		}
	}
	bus.Stop()
	if err := <-started; !errors.Is(err, errClosed) {
		t.Errorf("the start ended with %v", err)
	}
	if err := s.StartUnit(t.Context(), "vm@a.service"); err == nil {
		t.Error("a unit was started without a bus")
	}
	bus.Start()
	newFakeSystemd(t, bus)
	if err := s.StartUnit(t.Context(), "vm@a.service"); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}
