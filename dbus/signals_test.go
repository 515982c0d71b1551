package dbus

import (
	"context"
	"fmt"
	"testing"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// listener collects the names of VMs in the signals that a client gets, until
// the answer to a call that it makes at the end: what was sent to it before
// has come by then.
type listener struct {
	name string
	conn *dbus.Conn
	ch   chan *dbus.Signal
	want []string
}

func listen(t *testing.T, name string, c *dbus.Conn, want ...string) *listener {
	t.Helper()
	l := &listener{name: name, conn: c, ch: make(chan *dbus.Signal, 1000), want: want}
	c.Signal(l.ch)
	if err := c.AddMatchSignal(dbus.WithMatchSender(ConciergeName)); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *listener) check(t *testing.T) {
	t.Helper()
	// The marker: this answer follows every signal that was sent before.
	if _, err := invoke(t, l.conn, peerName, "Ping"); err != nil {
		t.Fatal(err)
	}
	l.conn.RemoveSignal(l.ch)
	got := []string{}
	for len(l.ch) > 0 {
		s := <-l.ch
		var msg conciergepb.VmStartedSignal
		if s.Name != ConciergeInterface+"."+VmStartedSignal {
			continue
		}
		if err := proto.Unmarshal(s.Body[0].([]byte), &msg); err != nil {
			t.Fatal(err)
		}
		got = append(got, msg.Name)
	}
	if fmt.Sprint(got) != fmt.Sprint(l.want) {
		t.Errorf("%s got %v, want %v", l.name, got, l.want)
	}
}

func TestSignalsReachTheirAudience(t *testing.T) {
	bus := dbustest.System(t)
	// One client is there before the service.
	early := bus.ConnectAs(t, dbustest.Daemon)
	s, _ := serve(t, bus, &handler{}, Options{DaemonUIDs: []uint32{dbustest.Games.UID}})
	subscribe := func(c *dbus.Conn, member string) *dbus.Conn {
		if _, err := invoke(t, c, Concierge1Name, member); err != nil {
			t.Fatal(err)
		}
		return c
	}
	all := []string{"one", "two", "root's", "last"}
	listeners := []*listener{
		listen(t, "the owner's early connection", early, "one", "last"),
		listen(t, "another of the owner's", bus.ConnectAs(t, dbustest.Daemon), "one", "last"),
		listen(t, "the owner's that subscribed", subscribe(bus.ConnectAs(t, dbustest.Daemon), "Subscribe"), "one", "last"),
		listen(t, "another user's", bus.ConnectAs(t, dbustest.Bin), "two"),
		listen(t, "another user's that subscribed", subscribe(bus.ConnectAs(t, dbustest.Bin), "Subscribe"), "two"),
		listen(t, "an administrator's", bus.ConnectAs(t, dbustest.Root)),
		listen(t, "an administrator's that subscribed", subscribe(bus.ConnectAs(t, dbustest.Root), "Subscribe"), all...),
		listen(t, "an administrator's that unsubscribed", subscribe(subscribe(bus.ConnectAs(t, dbustest.Root), "Subscribe"), "Unsubscribe")),
		listen(t, "a daemon's", bus.ConnectAs(t, dbustest.Games), all...),
	}
	// The service has read of all connections when it answers the last one.
	if _, err := invoke(t, listeners[len(listeners)-1].conn, peerName, "Ping"); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []struct {
		owner uint32
		vm    string
	}{{1, "one"}, {2, "two"}, {0, "root's"}, {1, "last"}} {
		if err := s.Emit(context.Background(), signal.owner, VmStartedSignal, &conciergepb.VmStartedSignal{Name: signal.vm}); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range listeners {
		l.check(t)
	}
}

func TestSignalsAreBroadcastWhenConfigured(t *testing.T) {
	bus := dbustest.Lax(t)
	s, _ := serve(t, bus, &handler{}, Options{BroadcastSignals: true})
	listeners := []*listener{listen(t, "one", bus.Connect(t), "vm"), listen(t, "another", bus.Connect(t), "vm")}
	if err := s.Emit(context.Background(), 1, VmStartedSignal, &conciergepb.VmStartedSignal{Name: "vm"}); err != nil {
		t.Fatal(err)
	}
	for _, l := range listeners {
		l.check(t)
	}
}

func TestSignalsKeepTheirOrderAndPrecedeTheReply(t *testing.T) {
	bus := dbustest.System(t)
	var s *Server
	ready := make(chan struct{})
	h := &handler{getVmInfo: nil}
	h.stopVm = func(ctx context.Context, subject policy.Subject, req *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
		<-ready
		for i := range 50 {
			if err := s.Emit(ctx, subject.Caller.UID, VmStartedSignal, &conciergepb.VmStartedSignal{Name: fmt.Sprint(i)}); err != nil {
				return nil, err
			}
		}
		return &conciergepb.SuccessFailureResponse{Success: true}, nil
	}
	s, _ = serve(t, bus, h, Options{})
	close(ready)
	// A raw client sees signals and reply in the order in which they came; and
	// it has only just connected, so that its identity may not be known yet.
	c := bus.ConnectAs(t, dbustest.Daemon)
	seen := make(chan *dbus.Message, 100)
	c.Eavesdrop(seen)
	defer c.Eavesdrop(nil)
	c.Object(ConciergeName, ConciergePath).Go(ConciergeInterface+".StopVm", 0, make(chan *dbus.Call, 1), []byte{})
	next := 0
	for m := range seen {
		if m.Type == dbus.TypeMethodReply {
			break
		}
		var msg conciergepb.VmStartedSignal
		if m.Type != dbus.TypeSignal || m.Headers[dbus.FieldMember].Value() != VmStartedSignal {
			continue
		}
		if err := proto.Unmarshal(m.Body[0].([]byte), &msg); err != nil {
			t.Fatal(err)
		}
		if msg.Name != fmt.Sprint(next) {
			t.Fatalf("got %s, want %d", msg.Name, next)
		}
		next++
	}
	if next != 50 {
		t.Errorf("%d signals came before the reply", next)
	}
}

func TestEmitRefusesWhatIsNotInTheTable(t *testing.T) {
	s, err := New([]Service{ConciergeService(&handler{})}, nil, Options{Bus: "unix:path=/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Emit(t.Context(), 1, "NoSuchSignal", &conciergepb.VmStartedSignal{}); err == nil {
		t.Error("an unknown signal was sent")
	}
	if err := s.Emit(t.Context(), 1, VmStartedSignal, &conciergepb.VmStoppedSignal{}); err == nil {
		t.Error("a signal with another's payload was sent")
	}
	if err := s.Emit(t.Context(), 1, VmStartedSignal, &conciergepb.VmStartedSignal{}); err != nil {
		t.Error("a signal without a bus:", err)
	}
}
