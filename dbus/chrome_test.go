package dbus

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/protos/appspb"
)

// fakeDesktop is what a user's desktop has for the applications of VMs.
type fakeDesktop struct {
	name  string
	calls chan string // "desktop method what"
	// hold, if it is there, keeps the answers back.
	hold chan struct{}
}

func (f *fakeDesktop) heard(method, what string) *dbus.Error {
	f.calls <- f.name + " " + method + " " + what
	if f.hold != nil {
		<-f.hold
	}
	return nil
}

func (f *fakeDesktop) UpdateApplicationList(b []byte) *dbus.Error {
	var list appspb.ApplicationList
	if err := proto.Unmarshal(b, &list); err != nil {
		return dbus.MakeFailedError(err)
	}
	return f.heard("UpdateApplicationList", list.VmName)
}

func (f *fakeDesktop) UpdateMimeTypes([]byte) *dbus.Error { return f.heard("UpdateMimeTypes", "") }
func (f *fakeDesktop) LaunchTerminal([]byte) *dbus.Error  { return f.heard("LaunchTerminal", "") }
func (f *fakeDesktop) OpenUrl(url string) *dbus.Error     { return f.heard("OpenUrl", url) }

func (f *fakeDesktop) SelectFile([]byte) *dbus.Error {
	f.heard("SelectFile", "")
	return dbus.MakeFailedError(errors.New("no dialogs here"))
}

// desktopOf puts a desktop on the bus, which queues for both names.
func desktopOf(t *testing.T, conn *dbus.Conn, f *fakeDesktop) {
	t.Helper()
	for _, o := range [][3]string{{VMApplicationsName, VMApplicationsPath, VMApplicationsInterface}, {URLHandlerName, URLHandlerPath, URLHandlerInterface}} {
		if err := conn.Export(f, dbus.ObjectPath(o[1]), o[2]); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.RequestName(o[0], 0); err != nil {
			t.Fatal(err)
		}
	}
}

// Each user's desktop gets the calls about that user's VMs, whether it has the
// name or waits for it, and nobody else's.
func TestDesktop(t *testing.T) {
	bus := dbustest.System(t)
	d := NewDesktop(serveCicerone(t, bus, newCiceroneHandler(), Options{}))
	calls := make(chan string, 100)
	list := &appspb.ApplicationList{VmName: "vm"}
	nobody := func(uid uint32) {
		t.Helper()
		if err := d.UpdateApplicationList(t.Context(), uid, list); !errors.Is(err, ErrNoDesktop) {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	nobody(1)
	daemon, bin := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Bin)
	desktopOf(t, daemon, &fakeDesktop{name: "daemon's", calls: calls})
	desktopOf(t, bin, &fakeDesktop{name: "bin's", calls: calls})
	desktopOf(t, bus.ConnectAs(t, dbustest.Bin), &fakeDesktop{name: "bin's second", calls: calls})
	nobody(0)
	nobody(5)
	want := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if got := <-calls; got != what {
			t.Errorf("%q, not %q", got, what)
		}
	}
	ctx := t.Context()
	for uid, name := range map[uint32]string{1: "daemon's", 2: "bin's"} {
		want(name+" UpdateApplicationList vm", d.UpdateApplicationList(ctx, uid, list))
		want(name+" UpdateMimeTypes ", d.UpdateMimeTypes(ctx, uid, &appspb.MimeTypes{}))
		want(name+" LaunchTerminal ", d.LaunchTerminal(ctx, uid, &appspb.TerminalParams{}))
		want(name+" OpenUrl http://x/", d.OpenUrl(ctx, uid, "http://x/"))
		// What a desktop says no to is an error, but not that there is none.
		if err := d.SelectFile(ctx, uid, &appspb.SelectFileRequest{}); err == nil || errors.Is(err, ErrNoDesktop) {
			t.Errorf("SelectFile: %v", err)
		}
		<-calls
	}
	// The next in the queue, and then none.
	bin.Close()
	for bus.Connect(t).BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, bin.Names()[0]).Err == nil {
	}
	want("bin's second UpdateApplicationList vm", d.UpdateApplicationList(ctx, 2, list))
	if _, err := daemon.ReleaseName(VMApplicationsName); err != nil {
		t.Fatal(err)
	}
	nobody(1)
	want("daemon's OpenUrl x", d.OpenUrl(ctx, 1, "x"))
	// What the bus would end the connection for is not sent.
	for _, url := range []string{"a\x00b", "a\xffb", strings.Repeat("x", maxURL+1)} {
		if err := d.OpenUrl(ctx, 1, url); err == nil || errors.Is(err, ErrNoDesktop) {
			t.Errorf("%.5q: %v", url, err)
		}
	}
	want("daemon's OpenUrl y", d.OpenUrl(ctx, 1, "y"))
	if len(calls) > 0 {
		t.Errorf("somebody heard of %q", <-calls)
	}
}

// That a desktop has come is told of the one that has the name.
func TestDesktopAppears(t *testing.T) {
	bus := dbustest.System(t)
	appeared := make(chan uint32, 10)
	serveCicerone(t, bus, newCiceroneHandler(), Options{DesktopAppeared: func(_ context.Context, uid uint32) { appeared <- uid }})
	daemon := bus.ConnectAs(t, dbustest.Daemon)
	for _, step := range []struct {
		do   func()
		want uint32
	}{
		{func() { desktopOf(t, daemon, &fakeDesktop{}) }, 1},
		{func() { desktopOf(t, bus.ConnectAs(t, dbustest.Bin), &fakeDesktop{}); daemon.Close() }, 2},
	} {
		step.do()
		if got := <-appeared; got != step.want {
			t.Errorf("user %d, not %d", got, step.want)
		}
	}
}

// A desktop that answers nothing holds up its own user's calls only, and those
// not for ever.
func TestDesktopThatHangs(t *testing.T) {
	bus := dbustest.System(t)
	d := NewDesktop(serveCicerone(t, bus, newCiceroneHandler(), Options{}))
	calls, hold := make(chan string, 100), make(chan struct{})
	desktopOf(t, bus.ConnectAs(t, dbustest.Daemon), &fakeDesktop{name: "slow", calls: calls, hold: hold})
	desktopOf(t, bus.ConnectAs(t, dbustest.Bin), &fakeDesktop{name: "quick", calls: calls})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, maxUserDesktopWaiting)
	for range maxUserDesktopWaiting {
		go func() { ended <- d.OpenUrl(ctx, 1, "x") }()
	}
	for range maxUserDesktopCalls {
		<-calls
	}
	if err := d.OpenUrl(t.Context(), 2, "x"); err != nil {
		t.Error(err)
	}
	if got := <-calls; got != "quick OpenUrl x" {
		t.Error(got)
	}
	// One more than may wait; all of them wait by now or soon.
	for {
		d.turns.mu.Lock()
		l := d.turns.lines[1]
		full := l != nil && l.waiting == maxUserDesktopWaiting
		d.turns.mu.Unlock()
		if full {
			break
		}
	}
	if err := d.OpenUrl(t.Context(), 1, "x"); err == nil || errors.Is(err, ErrNoDesktop) {
		t.Errorf("it waits with all the others: %v", err)
	}
	cancel()
	for range maxUserDesktopWaiting {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	close(hold)
	if len(d.turns.lines) > 0 || len(d.turns.slots) > 0 {
		t.Errorf("something is left: %v", d.turns.lines)
	}
}

// Others cannot call desktops: the policy lets only the service.
func TestNobodyElseCallsDesktops(t *testing.T) {
	bus := dbustest.SystemFor(t, "daemon")
	if os.Geteuid() != 0 {
		t.Fatal("needs root to be several users")
	}
	desktopOf(t, bus.ConnectAs(t, dbustest.Bin), &fakeDesktop{name: "bin's", calls: make(chan string, 10)})
	for _, u := range []dbustest.User{dbustest.Bin, dbustest.Games, dbustest.Root} {
		err := bus.ConnectAs(t, u).Object(URLHandlerName, URLHandlerPath).Call(URLHandlerInterface+".OpenUrl", 0, "x").Err
		wantError(t, err, errAccessDenied)
	}
	if err := bus.ConnectAs(t, dbustest.Daemon).Object(URLHandlerName, URLHandlerPath).Call(URLHandlerInterface+".OpenUrl", 0, "x").Err; err != nil {
		t.Error(err)
	}
}
