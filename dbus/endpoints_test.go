package dbus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// What vm_concierge serves, its client among Auberge's daemons understands, and
// nobody but those may ask.
func TestDoorAndItsClient(t *testing.T) {
	bus := dbustest.Lax(t)
	file := func(word string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		io.WriteString(w, word)
		return r
	}
	serve(t, bus, &handler{openVMEndpoints: func(_ context.Context, cid uint32) (VMEndpoints, error) {
		return VMEndpoints{VM: map[string]any{"cid": cid, "name": "vm"}, Tremplin: file("7778"), Crash: file("7779"), Container: file("8889")}, nil
	}}, Options{DaemonUIDs: []uint32{uint32(os.Getuid())}})
	c := newConciergeClient(t, bus)
	vm, tremplin, crash, container, err := c.OpenVmEndpoints(t.Context(), 33)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"cid": uint32(33), "name": "vm"}, vm); diff != "" {
		t.Error(diff)
	}
	for want, f := range map[string]*os.File{"7778": tremplin, "7779": crash, "8889": container} {
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
		f.Close()
	}

	other := dbustest.Lax(t)
	serve(t, other, &handler{}, Options{})
	conn := other.Connect(t)
	for member, args := range map[string][]any{
		"ListVmEndpoints": nil, "OpenVmEndpoints": {uint32(33)}, "ConnectVmVsock": {uint32(33), uint32(8888)},
		"TremplinReady": {uint32(33)}, "GetContainerKeys": {uint32(33), "penguin"},
	} {
		if _, err := invoke(t, conn, Concierge1Name, member, args...); errorName(err) != errAccessDenied {
			t.Errorf("%s for no daemon: %v", member, err)
		}
	}
}

// fakeCicerone stands in for what vm_concierge calls of vm_cicerone.
type fakeCicerone struct{ calls chan string }

func (f *fakeCicerone) heard(member string, data []byte) ([]byte, *dbus.Error) {
	f.calls <- fmt.Sprintf("%s of %d bytes", member, len(data))
	return nil, nil
}

func (f *fakeCicerone) NotifyVmStarted(data []byte) ([]byte, *dbus.Error) {
	return f.heard("started", data)
}

func (f *fakeCicerone) NotifyVmStopping(data []byte) ([]byte, *dbus.Error) {
	return f.heard("stopping", data)
}

func (f *fakeCicerone) NotifyVmStopped(data []byte) ([]byte, *dbus.Error) {
	return f.heard("stopped", data)
}

func (f *fakeCicerone) EnsureContainer(cid uint32, container, user string) *dbus.Error {
	if container == "bad" {
		return dbus.NewError(ErrorFailed, []any{"there is no space"})
	}
	f.calls <- fmt.Sprintf("ensure %d %s %s", cid, container, user)
	return nil
}

func TestCiceroneClient(t *testing.T) {
	bus := dbustest.Lax(t)
	c := NewCiceroneClient(bus.Address, slog.New(slog.DiscardHandler))
	t.Cleanup(c.Close)
	name := func(n string) *ciceronepb.NotifyVmStoppedRequest {
		return &ciceronepb.NotifyVmStoppedRequest{VmName: n}
	}
	if err := c.NotifyVmStopped(t.Context(), name("x")); err == nil {
		t.Error("nobody was told, and that is no error")
	}
	if err := c.EnsureContainer(t.Context(), 33, "penguin", "ada"); err == nil {
		t.Error("nobody can be started, and that is no error")
	}
	// Whoever has the name next is followed.
	came := make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx, func(context.Context) { came <- struct{}{} })
	}()
	defer func() { cancel(); <-ended }()
	for range 2 {
		f := &fakeCicerone{calls: make(chan string, 10)}
		conn := bus.Connect(t)
		for _, iface := range []string{CiceroneInterface, Cicerone1Name} {
			if err := conn.Export(f, CiceronePath, iface); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conn.RequestName(CiceroneName, 0); err != nil {
			t.Fatal(err)
		}
		<-came
		for want, call := range map[string]func() error{
			"started of 3 bytes": func() error {
				return c.NotifyVmStarted(t.Context(), &ciceronepb.NotifyVmStartedRequest{VmName: "x"})
			},
			"stopping of 4 bytes": func() error {
				return c.NotifyVmStopping(t.Context(), &ciceronepb.NotifyVmStoppingRequest{VmName: "xx"})
			},
			"stopped of 5 bytes":    func() error { return c.NotifyVmStopped(t.Context(), name("xxx")) },
			"ensure 33 penguin ada": func() error { return c.EnsureContainer(t.Context(), 33, "penguin", "ada") },
		} {
			if err := call(); err != nil {
				t.Errorf("%s: %v", want, err)
			} else if got := <-f.calls; got != want {
				t.Errorf("it heard %q, not %q", got, want)
			}
		}
		if err := c.EnsureContainer(t.Context(), 33, "bad", ""); err == nil || err.Error() != "there is no space" {
			t.Errorf("the reason is %v", err)
		}
		conn.Close()
	}
}
