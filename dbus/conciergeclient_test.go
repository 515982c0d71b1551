package dbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// fakeConcierge stands in for vm_concierge's methods for daemons.
type fakeConcierge struct{ ready chan uint32 }

func (*fakeConcierge) ListVmEndpoints() ([]map[string]dbus.Variant, *dbus.Error) {
	return []map[string]dbus.Variant{{"cid": dbus.MakeVariant(uint32(3)), "name": dbus.MakeVariant("vm"), "containers": dbus.MakeVariant(true)}}, nil
}

// pipeWith is the reading end of a pipe with a word in it.
func pipeWith(word string) dbus.UnixFD {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	defer w.Close()
	io.WriteString(w, word)
	return dbus.UnixFD(takeOrPanic(r))
}

func takeOrPanic(f *os.File) int {
	fd, err := takeFile(f)
	if err != nil {
		panic(err)
	}
	return fd
}

func (*fakeConcierge) OpenVmEndpoints(cid uint32) (map[string]dbus.Variant, dbus.UnixFD, dbus.UnixFD, dbus.UnixFD, *dbus.Error) {
	if cid != 3 {
		return nil, 0, 0, 0, dbus.NewError(ErrorNotFound, []any{"no such VM"})
	}
	return map[string]dbus.Variant{"cid": dbus.MakeVariant(cid)}, pipeWith("tremplin"), pipeWith("crash"), pipeWith("container"), nil
}

func (*fakeConcierge) ConnectVmVsock(cid, port uint32) (dbus.UnixFD, *dbus.Error) {
	return pipeWith(fmt.Sprintf("%d:%d", cid, port)), nil
}

func (f *fakeConcierge) TremplinReady(cid uint32) *dbus.Error {
	f.ready <- cid
	return nil
}

func (*fakeConcierge) GetContainerKeys(_ uint32, container string) (string, string, *dbus.Error) {
	return "authorized " + container, "private", nil
}

// conciergeOn has a fake on the bus until its connection is closed.
func conciergeOn(t *testing.T, bus *dbustest.Bus, f *fakeConcierge) *dbus.Conn {
	t.Helper()
	conn := bus.Connect(t)
	if err := conn.Export(f, ConciergePath, Concierge1Name); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(ConciergeName, 0); err != nil {
		t.Fatal(err)
	}
	return conn
}

func newConciergeClient(t *testing.T, bus *dbustest.Bus) *ConciergeClient {
	t.Helper()
	c := NewConciergeClient(bus.Address, slog.New(slog.DiscardHandler))
	t.Cleanup(c.Close)
	return c
}

func TestConciergeClient(t *testing.T) {
	bus := dbustest.Lax(t)
	c := newConciergeClient(t, bus)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.ListVmEndpoints(ctx); !errors.Is(err, ErrNoConcierge) {
		t.Fatalf("without vm_concierge: %v", err)
	}
	c.Close()
	f := &fakeConcierge{ready: make(chan uint32, 1)}
	conciergeOn(t, bus, f)
	list, err := c.ListVmEndpoints(ctx)
	if diff := cmp.Diff([]map[string]any{{"cid": uint32(3), "name": "vm", "containers": true}}, list); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	vm, tremplin, crash, container, err := c.OpenVmEndpoints(ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"cid": uint32(3)}, vm); diff != "" {
		t.Error(diff)
	}
	for want, f := range map[string]*os.File{"tremplin": tremplin, "crash": crash, "container": container} {
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", want, got, err)
		}
		f.Close()
	}
	var answer *callError
	if _, _, _, _, err := c.OpenVmEndpoints(ctx, 4); !errors.As(err, &answer) || answer.name != ErrorNotFound {
		t.Errorf("a VM that is not there: %v", err)
	}
	stream, err := c.ConnectVmVsock(ctx, 3, 7)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(stream); err != nil || string(got) != "3:7" {
		t.Errorf("%q, %v", got, err)
	}
	stream.Close()
	if err := c.TremplinReady(ctx, 3); err != nil || <-f.ready != 3 {
		t.Error(err)
	}
	if authorized, private, err := c.GetContainerKeys(ctx, 3, "penguin"); err != nil || authorized != "authorized penguin" || private != "private" {
		t.Errorf("%q %q %v", authorized, private, err)
	}
}

// A vm_concierge that comes, or comes anew, is asked how things are, also on a
// bus that was restarted; one that goes is not called, nor started.
func TestConciergeComesAndGoes(t *testing.T) {
	bus := dbustest.Lax(t)
	c := newConciergeClient(t, bus)
	ctx, cancel := context.WithCancel(t.Context())
	resynced, over := make(chan error, 10), make(chan struct{})
	go func() {
		defer close(over)
		c.Run(ctx, func(ctx context.Context) {
			_, err := c.ListVmEndpoints(ctx)
			resynced <- err
		})
	}()
	for round := range 3 {
		conn := conciergeOn(t, bus, &fakeConcierge{})
		if err := <-resynced; err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		conn.Close()
	}
	bus.Stop()
	bus.Start()
	conciergeOn(t, bus, &fakeConcierge{})
	if err := <-resynced; err != nil {
		t.Errorf("on another bus: %v", err)
	}
	cancel()
	<-over
}
