package dbus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/test/syncbuf"
)

// hostEvents notes what it is told, and waits where a test wants it to.
type hostEvents struct {
	told chan string

	mu   sync.Mutex
	hold map[string]chan context.Context
	gate map[string]chan struct{}
}

// waits has a call take until its context is done, which the channel gets.
func (h *hostEvents) waits(what string) <-chan context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold[what] = make(chan context.Context, 1)
	return h.hold[what]
}

// stays has a call take until goOn is called, or the test ends.
func (h *hostEvents) stays(t *testing.T, what string) (goOn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gate := make(chan struct{})
	h.gate[what] = gate
	goOn = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(goOn)
	return goOn
}

func (h *hostEvents) note(ctx context.Context, what string) {
	h.mu.Lock()
	ch, gate := h.hold[what], h.gate[what]
	h.mu.Unlock()
	h.told <- what
	if gate != nil {
		<-gate
	}
	if ch != nil {
		ch <- ctx
		<-ctx.Done()
	}
}

func (h *hostEvents) PrepareForSleep(ctx context.Context, about bool) {
	h.note(ctx, fmt.Sprint("sleep ", about))
}

func (h *hostEvents) PrepareForShutdown(ctx context.Context, about bool) {
	h.note(ctx, fmt.Sprint("shutdown ", about))
}

func (h *hostEvents) UserRemoved(uid uint32) {
	h.note(context.Background(), fmt.Sprint("removed ", uid))
}

func (h *hostEvents) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-h.told:
			if got != w {
				t.Fatalf("told %q, want %q", got, w)
			}
		case <-time.After(patience):
			t.Fatalf("nobody is told %q", w)
		}
	}
}

// hear runs a Logind until the test ends.
func hear(t *testing.T, bus *dbustest.Bus) (*hostEvents, *syncbuf.Buffer) {
	t.Helper()
	h := &hostEvents{told: make(chan string, 1000), hold: map[string]chan context.Context{}, gate: map[string]chan struct{}{}}
	log := &syncbuf.Buffer{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { NewLogind(bus.Address, slog.New(slog.NewTextHandler(log, nil)), h).Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return h, log
}

// fakeLogind is a login manager that is there; see dbustest.
func fakeLogind(t *testing.T, bus *dbustest.Bus) *dbustest.Logind {
	t.Helper()
	l := dbustest.NewLogind(t, bus.Connect(t), 5*time.Second)
	l.Appear()
	return l
}

// The inhibitors are held while the service runs, given up when it is ready
// for what is to come, and taken again afterwards.
func TestLogindInhibitors(t *testing.T) {
	bus := dbustest.Lax(t)
	login := fakeLogind(t, bus)
	h, _ := hear(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	sleep, shutdown := login.AwaitLock("sleep", patience), login.AwaitLock("shutdown", patience)
	for _, i := range []*dbustest.Inhibitor{sleep, shutdown} {
		if i.Who != "Auberge" || i.Why == "" || i.Mode != "delay" || !i.Held() {
			t.Errorf("the inhibitor is %+v, held: %v", i, i.Held())
		}
	}
	for range 2 {
		login.PrepareForSleep(true)
		h.expect(t, "sleep true")
		sleep.AwaitRelease(t, patience)
		if !shutdown.Held() {
			t.Error("the inhibitor of the shutdown is gone as well")
		}
		login.PrepareForSleep(false)
		h.expect(t, "sleep false")
		sleep = login.AwaitLock("sleep", patience)
	}
	login.PrepareForShutdown(true)
	h.expect(t, "shutdown true")
	shutdown.AwaitRelease(t, patience)
	login.PrepareForShutdown(false)
	h.expect(t, "shutdown false")
	login.AwaitLock("shutdown", patience)
	login.UserRemoved(64101)
	h.expect(t, "removed 64101")
}

// The machine is ready when the VMs are, or when it does not wait any longer.
func TestLogindWaitsNoLonger(t *testing.T) {
	bus := dbustest.Lax(t)
	login := fakeLogind(t, bus)
	h, _ := hear(t, bus)
	waiting := h.waits("sleep true")
	h.expect(t, "sleep false", "shutdown false")
	sleep := login.AwaitLock("sleep", patience)
	began := time.Now()
	login.PrepareForSleep(true)
	h.expect(t, "sleep true")
	ctx := <-waiting
	if end, ok := ctx.Deadline(); !ok || end.After(began.Add(5*time.Second)) || end.Before(began.Add(time.Second)) {
		t.Errorf("the VMs have time until %v", end)
	}
	if !sleep.Held() {
		t.Error("the machine sleeps before its time")
	}
	sleep.AwaitRelease(t, patience)
}

// A machine that is to sleep again does not wait for what is done because it
// was awake.
func TestLogindSleepsAgainAtOnce(t *testing.T) {
	bus := dbustest.Lax(t)
	login := fakeLogind(t, bus)
	h, _ := hear(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	waiting := h.waits("sleep false")
	login.PrepareForSleep(true)
	h.expect(t, "sleep true")
	login.PrepareForSleep(false)
	h.expect(t, "sleep false")
	<-waiting
	login.UserRemoved(5) // that alone ends nothing
	login.PrepareForSleep(true)
	h.expect(t, "removed 5", "sleep true")
}

// Nor does one that is to sleep again before it has been looked at that it was
// awake.
func TestLogindSleepsAgainBeforeThat(t *testing.T) {
	bus := dbustest.Lax(t)
	conn := bus.Connect(t)
	login := dbustest.NewLogind(t, conn, 5*time.Second)
	login.Appear()
	h, _ := hear(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	goOn := h.stays(t, "removed 5")
	h.waits("sleep false")
	login.UserRemoved(5)
	h.expect(t, "removed 5")
	login.PrepareForSleep(true)
	login.PrepareForSleep(false)
	login.PrepareForSleep(true)
	var id string
	if err := conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Store(&id); err != nil { // all of it was sent
		t.Fatal(err)
	}
	goOn()
	h.expect(t, "sleep true", "sleep false", "sleep true")
}

// A login manager may come late, go and come back; one that is about to do
// something when it is found is heard at once.
func TestLogindComesAndGoes(t *testing.T) {
	bus := dbustest.Lax(t)
	h, log := hear(t, bus)
	h.expect(t, "sleep false")
	login := dbustest.NewLogind(t, bus.Connect(t), time.Second)
	login.Appear()
	h.expect(t, "sleep false", "shutdown false")
	first := login.AwaitLock("sleep", patience)
	login.Vanish()
	h.expect(t, "sleep false")
	first.AwaitRelease(t, patience)
	login.Set("PreparingForShutdown", true)
	login.Appear()
	h.expect(t, "sleep false", "shutdown true")
	login.Set("PreparingForShutdown", false)

	// And so may the bus.
	bus.Stop()
	bus.Start()
	h.expect(t, "sleep false")
	fakeLogind(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	if n := strings.Count(log.String(), "no login manager"); n < 1 || n > 3 || strings.Contains(log.String(), "level=WARN") {
		t.Errorf("the log:\n%s", log)
	}
}

// Signals count when they come from the login manager. Whoever sends others
// achieves nothing.
func TestLogindSignalsOfOthers(t *testing.T) {
	bus := dbustest.Lax(t)
	login := fakeLogind(t, bus)
	h, _ := hear(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	mallory := bus.Connect(t)
	emit := func(dest, path, iface, member string, args ...any) {
		t.Helper()
		msg := &dbus.Message{Type: dbus.TypeSignal, Body: args, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(path)),
			dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		}}
		if dest != "" {
			msg.Headers[dbus.FieldDestination] = dbus.MakeVariant(dest)
		}
		if len(args) > 0 {
			msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
		}
		if call := mallory.Send(msg, nil); call != nil && call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	var names []string
	if err := mallory.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	for _, to := range names {
		if !strings.HasPrefix(to, ":") || to == mallory.Names()[0] {
			continue
		}
		emit(to, logindPath, logindIface, "PrepareForSleep", true)
		emit(to, logindPath, logindIface, "PrepareForShutdown", true)
		emit(to, logindPath, logindIface, "UserRemoved", uint32(5), dbus.ObjectPath("/x"))
		emit(to, driverPath, driverName, "NameOwnerChanged", logindName, ":1.1", mallory.Names()[0])
		emit(to, logindPath, logindIface, "PrepareForSleep", strings.Repeat("x", 1<<20))
	}
	var id string
	if err := mallory.BusObject().Call("org.freedesktop.DBus.GetId", 0).Store(&id); err != nil { // all of it was sent
		t.Fatal(err)
	}
	login.UserRemoved(64101)
	h.expect(t, "removed 64101")
	select {
	case got := <-h.told:
		t.Errorf("told %q", got)
	default:
	}
}

// A login manager that refuses to wait is a warning and no more.
func TestLogindRefuses(t *testing.T) {
	bus := dbustest.Lax(t)
	conn := bus.Connect(t)
	if _, err := conn.RequestName(logindName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	h, log := hear(t, bus)
	h.expect(t, "sleep false", "shutdown false")
	if !strings.Contains(log.String(), "will not wait for its VMs") {
		t.Errorf("the log:\n%s", log)
	}
	if err := conn.Emit(logindPath, logindIface+".PrepareForSleep", true); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "sleep true")
}
