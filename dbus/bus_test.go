package dbus

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// awaitName waits until somebody other than the connection old owns the
// service's name.
func awaitName(t *testing.T, c *dbus.Conn, old string) {
	t.Helper()
	ch := make(chan *dbus.Signal, 100)
	c.Signal(ch)
	if err := c.AddMatchSignal(dbus.WithMatchInterface(driverName), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, ConciergeName)); err != nil {
		t.Fatal(err)
	}
	owner := nameOwner(c)
	for owner == "" || owner == old {
		if s := <-ch; s.Name == driverName+".NameOwnerChanged" && s.Body[0] == ConciergeName {
			owner = s.Body[2].(string)
		}
	}
	c.RemoveSignal(ch)
}

// nameOwner is the connection that owns the service's name.
func nameOwner(c *dbus.Conn) (owner string) {
	c.BusObject().Call(driverName+".GetNameOwner", 0, ConciergeName).Store(&owner)
	return owner
}

func TestABusRestartIsSurvived(t *testing.T) {
	bus := dbustest.Lax(t)
	b := newBlocked()
	ended := make(chan error, 1)
	s, _ := serve(t, bus, &handler{getVmInfo: func(ctx context.Context, sub policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
		resp, err := b.getVmInfo(ctx, sub, req)
		if req.Name == "held" {
			ended <- err
		}
		return resp, err
	}}, Options{})
	c := bus.Connect(t)
	goInfo(c, "held")
	<-b.arrived
	before := s.current.Load()

	bus.Stop()
	bus.Start()
	c = bus.Connect(t)
	awaitName(t, c, "")
	if ok := <-goInfo(c, "fast").Done; ok.Err != nil {
		t.Fatal(ok.Err)
	}
	if s.current.Load().peers == before.peers {
		t.Error("what was learned on the old bus is still there")
	}
	close(b.goOn)
	if err := <-ended; err != nil {
		t.Error("the call in progress did not go on:", err)
	}
	// Signals go to whom the new bus knows.
	if _, err := invoke(t, c, Concierge1Name, "Subscribe"); err != nil {
		t.Fatal(err)
	}
	l := listen(t, "a client of the new bus", c, "vm")
	if err := s.Emit(context.Background(), uint32(os.Geteuid()), VmStartedSignal, &conciergepb.VmStartedSignal{Name: "vm"}); err != nil {
		t.Fatal(err)
	}
	l.check(t)
}

func TestANameTakenAwayIsTakenAgain(t *testing.T) {
	bus := dbustest.Lax(t)
	s, _ := serve(t, bus, &handler{getVmInfo: echo}, Options{})
	c := bus.Connect(t)
	old := nameOwner(c)
	// Nobody can take it, so the service's own connection has to give it up.
	// The news of it is quicker than the answer.
	var result uint32
	err := s.current.Load().link.driver(t.Context(), "ReleaseName", []any{ConciergeName}, &result)
	if err != nil && !errors.Is(err, errClosed) {
		t.Fatal(err)
	}
	awaitName(t, c, old)
	if ok := <-goInfo(c, "vm").Done; ok.Err != nil {
		t.Fatal(ok.Err)
	}
}

func TestACallerWhoReadsNothing(t *testing.T) {
	// The bus stops reading from a service whose messages pile up before a
	// peer; a small limit stands in for the system bus's 127 MiB.
	bus := dbustest.Lax(t, `<limit name="max_incoming_bytes">1000000</limit>`)
	s, _ := serve(t, bus, &handler{getVmInfo: func(ctx context.Context, sub policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
		if req.Name == "" {
			req.Name = strings.Repeat("x", 256<<10)
		}
		return echo(ctx, sub, req)
	}}, Options{Limits: Limits{Write: 200 * time.Millisecond}})
	first := s.current.Load()
	c := bus.Connect(t)
	old := nameOwner(c)
	deaf := rawConnect(t, bus)
	for range 20 {
		if err := deaf.send(infoCall(nil)); err != nil {
			t.Fatal(err)
		}
	}
	<-first.ctx.Done() // the service gave up its connection
	awaitName(t, c, old)
	if ok := <-goInfo(c, "vm").Done; ok.Err != nil {
		t.Fatal(ok.Err)
	}
}

func TestATakenNameIsAnError(t *testing.T) {
	bus := dbustest.Lax(t)
	c := bus.Connect(t)
	if _, err := c.RequestName(ConciergeName, 0); err != nil {
		t.Fatal(err)
	}
	s, err := New([]Service{ConciergeService(&handler{})}, nil, Options{Bus: bus.Address})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context(), func() { t.Error("ready without the name") })
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), c.Names()[0]) {
		t.Error(err)
	}
}

func TestStartFailsClearly(t *testing.T) {
	for _, test := range []struct{ name, bus, want string }{
		{"no bus", "unix:path=/nowhere/bus", "/nowhere/bus"},
		{"several, none there", "unix:path=/nowhere/a;unix:abstract=nowhere", "nowhere"},
		{"no address", "", "no bus address"},
		{"not a Unix socket", "tcp:host=localhost,port=1", "not an address of a Unix socket"},
		{"not a word we know", "systen", "not an address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := New([]Service{ConciergeService(&handler{})}, nil, Options{Bus: test.bus})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
		})
	}
	t.Run("not allowed to own the name", func(t *testing.T) {
		bus := dbustest.SystemFor(t, "nobody")
		s, err := New([]Service{ConciergeService(&handler{})}, nil, Options{Bus: bus.Address})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "can't own "+ConciergeName) {
			t.Error(err)
		}
	})
}

func TestAPanicEndsOneCall(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{
		getVmInfo: echo,
		stopVm: func(context.Context, policy.Subject, *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
			panic("secret")
		},
		listVms: func(context.Context, policy.Subject, *conciergepb.ListVmsRequest) (*conciergepb.ListVmsResponse, error) {
			return nil, nil
		},
		listVmDisks: func(context.Context, policy.Subject, *conciergepb.ListVmDisksRequest) (proto.Message, error) {
			return &conciergepb.ListVmDisksResponse{FailureReason: "\xff"}, nil
		},
	}, Options{})
	c := bus.Connect(t)
	for _, member := range []string{"StopVm", "ListVms", "ListVmDisks"} {
		_, err := invoke(t, c, ConciergeInterface, member, []byte{})
		if errorName(err) != errFailed || err.Error() != "internal error" {
			t.Errorf("%s: %v", member, err)
		}
	}
	if ok := <-goInfo(c, "vm").Done; ok.Err != nil {
		t.Error(ok.Err)
	}
}

func TestStandardInterfaces(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{}, Options{})
	c := bus.Connect(t)
	value := dbus.MakeVariant("x")
	for _, test := range []struct {
		name, iface, member string
		args                []any
		want                string
	}{
		{"ping", peerName, "Ping", nil, "success"},
		{"all properties of an interface", propertiesName, "GetAll", []any{ConciergeInterface}, "success"},
		{"all properties of ours", propertiesName, "GetAll", []any{Concierge1Name}, "success"},
		{"all properties of an unknown interface", propertiesName, "GetAll", []any{"x.y"}, errUnknownInterface},
		{"a property", propertiesName, "Get", []any{ConciergeInterface, "Version"}, errUnknownProperty},
		{"a property of an unknown interface", propertiesName, "Get", []any{"x.y", "Version"}, errUnknownInterface},
		{"a property of the wrong type", propertiesName, "Get", []any{uint32(1), "Version"}, errInvalidArgs},
		{"setting", propertiesName, "Set", []any{ConciergeInterface, "Version", value}, errPropertyReadOnly},
		{"setting on ours", propertiesName, "Set", []any{Concierge1Name, "Version", value}, errPropertyReadOnly},
		{"setting with wrong arguments", propertiesName, "Set", nil, errPropertyReadOnly},
	} {
		t.Run(test.name, func(t *testing.T) {
			results, err := invoke(t, c, test.iface, test.member, test.args...)
			wantError(t, err, test.want)
			if test.member == "GetAll" && err == nil && len(results[0].(map[string]dbus.Variant)) != 0 {
				t.Error(results)
			}
		})
	}
}
