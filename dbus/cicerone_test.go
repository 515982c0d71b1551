package dbus

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// ciceroneHandler handles what the tests call; the rest panics.
type ciceroneHandler struct {
	Cicerone
	Cicerone1
	subjects chan policy.Subject
	imported chan string
	// listing gets the name of a VM whose applications are asked for; the
	// answer comes with hold.
	listing chan string
	hold    chan struct{}
}

func newCiceroneHandler() *ciceroneHandler {
	return &ciceroneHandler{subjects: make(chan policy.Subject, 10), imported: make(chan string, 1)}
}

func (h *ciceroneHandler) NotifyVmStarted(_ context.Context, s policy.Subject, _ *ciceronepb.NotifyVmStartedRequest) (*vmtoolspb.EmptyMessage, error) {
	h.subjects <- s
	return &vmtoolspb.EmptyMessage{}, nil
}

func (h *ciceroneHandler) IsContainerRunning(_ context.Context, s policy.Subject, _ *ciceronepb.IsContainerRunningRequest) (*ciceronepb.IsContainerRunningResponse, error) {
	h.subjects <- s
	return &ciceronepb.IsContainerRunningResponse{ContainerRunning: true}, nil
}

func (h *ciceroneHandler) StopLxdContainer(context.Context, policy.Subject, *ciceronepb.StopLxdContainerRequest) (*ciceronepb.StopLxdContainerResponse, error) {
	return nil, errors.New("a reason")
}

func (h *ciceroneHandler) SetTimezone(_ context.Context, s policy.Subject, _ *ciceronepb.SetTimezoneRequest) (*ciceronepb.SetTimezoneResponse, error) {
	h.subjects <- s
	return &ciceronepb.SetTimezoneResponse{}, nil
}

func (h *ciceroneHandler) EnsureContainer(_ context.Context, s policy.Subject, _ uint32, _, _ string) error {
	h.subjects <- s
	return nil
}

func (h *ciceroneHandler) ImportContainer(_ context.Context, _ policy.Subject, vm, container string, in *os.File) error {
	data, err := io.ReadAll(in)
	h.imported <- vm + "/" + container + ": " + string(data)
	return err
}

func (h *ciceroneHandler) ExportContainer(_ context.Context, _ policy.Subject, vm, container string, out *os.File) error {
	_, err := io.WriteString(out, vm+"/"+container)
	return err
}

func (h *ciceroneHandler) ListApplications(_ context.Context, _ policy.Subject, vm, container string) (*appspb.ApplicationList, error) {
	if h.listing != nil {
		h.listing <- vm
		<-h.hold
	}
	return &appspb.ApplicationList{VmName: vm, ContainerName: container}, nil
}

// serveCicerone runs a server of h on bus until the test ends.
func serveCicerone(t *testing.T, bus *dbustest.Bus, h *ciceroneHandler, opts Options) *Server {
	t.Helper()
	opts.Bus = bus.Address
	opts.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := New([]Service{CiceroneService(h)}, []OwnInterface{Cicerone1Interface(h)}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal("Run:", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("Run:", err)
		}
	})
	return s
}

// invokeCicerone calls a method of vm_cicerone and returns its results.
func invokeCicerone(t *testing.T, c *dbus.Conn, iface, member string, args ...any) ([]any, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := c.Object(CiceroneName, CiceronePath).CallWithContext(ctx, iface+"."+member, 0, args...)
	return r.Body, r.Err
}

func callCicerone(t *testing.T, c *dbus.Conn, member string, req, resp proto.Message) error {
	t.Helper()
	data, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	results, err := invokeCicerone(t, c, CiceroneInterface, member, data)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(results[0].([]byte), resp); err != nil {
		t.Fatal(err)
	}
	return nil
}

func TestIntrospectionOfCicerone(t *testing.T) {
	bus := dbustest.Lax(t)
	serveCicerone(t, bus, newCiceroneHandler(), Options{})
	const golden = "testdata/cicerone.xml"
	var got string
	if err := bus.Connect(t).Object(CiceroneName, CiceronePath).Call(introspectableName+".Introspect", 0).Store(&got); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

// Every response of vm_cicerone that can say that a call failed, and why, does.
func TestFailuresOfCicerone(t *testing.T) {
	bus := dbustest.Lax(t)
	serveCicerone(t, bus, newCiceroneHandler(), Options{})
	var resp ciceronepb.StopLxdContainerResponse
	if err := callCicerone(t, bus.Connect(t), "StopLxdContainer", &ciceronepb.StopLxdContainerRequest{}, &resp); err != nil {
		t.Fatal(err)
	}
	want := &ciceronepb.StopLxdContainerResponse{Status: ciceronepb.StopLxdContainerResponse_FAILED, FailureReason: "a reason"}
	if diff := cmp.Diff(want, &resp, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// Those without a status have a D-Bus error.
	without := map[string]bool{"NotifyVmStarted": true, "NotifyVmStopping": true, "NotifyVmStopped": true, "GetContainerToken": true,
		"IsContainerRunning": true, "ListRunningContainers": true, "GetContainerAppIcon": true, "FileSelected": true,
		"SetTimezone": true, "GetDebugInformation": true}
	for _, m := range CiceroneService(nil).Methods {
		if got := failedResponse(m.Response, errUnset) == nil; got != without[m.Name] {
			t.Errorf("%s: it says nothing of failures: %t", m.Name, got)
		}
	}
}

// What daemons tell each other comes from nobody else: the bus sees to that by
// the user, the service by its own setting.
func TestDaemonsOnly(t *testing.T) {
	for _, trusted := range []bool{true, false} {
		bus := dbustest.System(t)
		h := newCiceroneHandler()
		opts := Options{}
		if trusted {
			opts.DaemonUIDs = []uint32{uint32(os.Geteuid())}
		}
		serveCicerone(t, bus, h, opts)
		notify := &ciceronepb.NotifyVmStartedRequest{VmName: "vm", OwnerId: "1"}
		for _, c := range []struct {
			conn *dbus.Conn
			may  bool
		}{{bus.Connect(t), trusted}, {bus.ConnectAs(t, dbustest.Daemon), false}} {
			err := callCicerone(t, c.conn, "NotifyVmStarted", notify, new(vmtoolspb.EmptyMessage))
			if (err == nil) != c.may || err != nil && errorName(err) != errAccessDenied {
				t.Errorf("NotifyVmStarted, trusted %t: %v", trusted, err)
			}
			_, err = invokeCicerone(t, c.conn, Cicerone1Name, "EnsureContainer", uint32(3), "penguin", "user")
			if (err == nil) != c.may || err != nil && errorName(err) != errAccessDenied {
				t.Errorf("EnsureContainer, trusted %t: %v", trusted, err)
			}
			if err := callCicerone(t, c.conn, "IsContainerRunning", &ciceronepb.IsContainerRunningRequest{}, new(ciceronepb.IsContainerRunningResponse)); err != nil {
				t.Errorf("what everybody may: %v", err)
			}
		}
	}
}

// An import's and an export's data go through the caller's own descriptors.
func TestDescriptorsAsArguments(t *testing.T) {
	bus := dbustest.Lax(t)
	h := newCiceroneHandler()
	serveCicerone(t, bus, h, Options{})
	c := bus.Connect(t)
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	r, w := pipe()
	io.WriteString(w, "data")
	w.Close()
	if _, err := invokeCicerone(t, c, Cicerone1Name, "ImportContainer", "vm", "", "penguin", dbus.UnixFD(r.Fd())); err != nil {
		t.Fatal(err)
	}
	if got := <-h.imported; got != "vm/penguin: data" {
		t.Error(got)
	}
	r, w = pipe()
	if _, err := invokeCicerone(t, c, Cicerone1Name, "ExportContainer", "vm", "", "penguin", dbus.UnixFD(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	// The service's own end is closed with the call, or this would not end.
	if got, err := io.ReadAll(r); err != nil || string(got) != "vm/penguin" {
		t.Errorf("%q, %v", got, err)
	}
	results, err := invokeCicerone(t, c, Cicerone1Name, "ListApplications", "vm", "", "penguin")
	if err != nil {
		t.Fatal(err)
	}
	var list appspb.ApplicationList
	if err := proto.Unmarshal(results[0].([]byte), &list); err != nil || list.VmName != "vm" || list.ContainerName != "penguin" {
		t.Errorf("%v, %v", &list, err)
	}
	_, err = invokeCicerone(t, c, Cicerone1Name, "ImportContainer", "vm", "", "penguin", dbus.UnixFDIndex(3))
	if err == nil {
		t.Error("a descriptor that did not come along was taken")
	}
	_, err = invokeCicerone(t, c, Cicerone1Name, "ImportContainer", "vm", "", "penguin")
	wantError(t, err, errInvalidArgs)
}

// Lists of applications may be long, and are answered a few at a time.
func TestLongListsAreLimited(t *testing.T) {
	bus := dbustest.Lax(t)
	h := newCiceroneHandler()
	h.listing, h.hold = make(chan string, 100), make(chan struct{})
	serveCicerone(t, bus, h, Options{})
	c := bus.Connect(t)
	list := func() *dbus.Call {
		return c.Object(CiceroneName, CiceronePath).Go(Cicerone1Name+".ListApplications", 0, make(chan *dbus.Call, 1), "vm", "", "penguin")
	}
	var held []*dbus.Call
	for range 8 {
		held = append(held, list())
		<-h.listing
	}
	surplus := list()
	select {
	case <-surplus.Done:
		wantError(t, surplus.Err, errLimitsExceeded)
	case <-h.listing:
		t.Error("a ninth is served")
	}
	var running ciceronepb.IsContainerRunningResponse
	if err := callCicerone(t, c, "IsContainerRunning", &ciceronepb.IsContainerRunningRequest{VmName: "vm"}, &running); err != nil {
		t.Error("another call is not served:", err)
	}
	close(h.hold)
	for _, call := range held {
		if <-call.Done; call.Err != nil {
			t.Error(call.Err)
		}
	}
	if again := <-list().Done; again.Err != nil {
		t.Error("places are not given back:", again.Err)
	}
}
