package dbus

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestOversizeMessages(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{getVmInfo: echo, startVm: readAll}, Options{})
	c := rawConnect(t, bus)
	other := bus.Connect(t)

	// A request of just the limit, so that the limit is no less than promised.
	full := protowire.AppendTag(nil, 200, protowire.BytesType)
	full = protowire.AppendBytes(full, make([]byte, 4<<20-6))
	if len(full) != 4<<20 {
		t.Fatal(len(full))
	}
	flood := make([]byte, 0, 1<<20)
	for len(flood) < 1<<20 {
		flood = append(flood, 0xc2, 0x0c, 0) // field 200, empty
	}
	disks := make([]byte, 0, 1<<20)
	for len(disks) < 1<<20 {
		disks = append(disks, 0x12, 0) // StartVmRequest.disks, empty
	}
	start := infoCall(disks)
	start.member = "StartVm"
	path := func(text string) *outgoing {
		o := infoCall(nil)
		o.path = text
		return o
	}
	member := infoCall(nil)
	member.member = strings.Repeat("m", 200)
	plain := infoCall(nil)
	plain.iface, plain.member, plain.body = Concierge1Name, "ConfigureVm", body{sig: "ssa{sv}", data: stringBody("vm", "", strings.Repeat("x", 5<<16))}

	for _, test := range []struct {
		name, want string
		o          *outgoing
	}{
		{"4 MiB", "", infoCall(full)},
		{"4 MiB and a byte", errLimitsExceeded, infoCall(append(full, 0))},
		{"5 MiB", errLimitsExceeded, infoCall(make([]byte, 5<<20))},
		{"31 MiB", errLimitsExceeded, infoCall(make([]byte, 31<<20))},
		{"an object path of 31 MiB", errLimitsExceeded, path("/" + strings.Repeat("a", 31<<20))},
		{"an object path of 15 million elements", errLimitsExceeded, path(strings.Repeat("/a", 31<<19))},
		{"an object path of 3 MiB", errUnknownObject, path("/" + strings.Repeat("a", 3<<20))},
		{"our object path and more", errUnknownObject, path(ConciergePath + strings.Repeat("/a", 1<<10))},
		{"350,000 unknown fields", errInvalidArgs, infoCall(flood)},
		{"200 unknown fields", "", infoCall(flood[:600])},
		{"500,000 empty disks", errInvalidArgs, start},
		{"a long member", errUnknownMethod, member},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.t = t
			begin := time.Now()
			serial, err := c.transmitAny(test.o)
			if err != nil {
				t.Fatal(err)
			}
			m := c.awaitReply(serial)
			if m.errorName != test.want {
				t.Errorf("got %q, want %q", m.errorName, test.want)
			}
			took := time.Since(begin)
			begin = time.Now()
			var resp conciergepb.GetVmInfoResponse
			if err := callProto(t, other, "GetVmInfo", &conciergepb.GetVmInfoRequest{}, &resp); err != nil {
				t.Fatal(err)
			}
			t.Logf("answered in %v, the next client in %v", took, time.Since(begin))
			if took > 10*time.Second {
				t.Error("that was too slow")
			}
		})
	}
	t.Run("a body of plain types", func(t *testing.T) {
		c.t = t
		if m := c.roundTrip(plain); m.errorName != errInvalidArgs {
			t.Error(m.errorName)
		}
	})
}

// transmitAny is transmit without its limit, which is on our own messages.
func (c *rawClient) transmitAny(o *outgoing) (uint32, error) {
	c.serial++
	return c.serial, write(c.sock, o.encode(c.serial), o.body.fds, patience)
}

// stringBody encodes "ss" and an a{sv} with one long string value.
func stringBody(name, owner, value string) []byte {
	b, err := plainBody(name, owner, map[string]dbus.Variant{"network": dbus.MakeVariant(value)})
	if err != nil {
		panic(err)
	}
	return b.data
}

// blocked is a GetVmInfo handler that holds every call until it may go on.
type blocked struct {
	arrived chan string
	goOn    chan struct{}
}

func newBlocked() *blocked {
	return &blocked{arrived: make(chan string, 1024), goOn: make(chan struct{})}
}

func (b *blocked) getVmInfo(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
	if req.Name == "fast" {
		return echo(ctx, s, req)
	}
	b.arrived <- req.Name
	select {
	case <-b.goOn:
		return echo(ctx, s, req)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func goInfo(c *dbus.Conn, name string) *dbus.Call {
	data, _ := proto.Marshal(&conciergepb.GetVmInfoRequest{Name: name})
	return c.Object(ConciergeName, ConciergePath).Go(ConciergeInterface+".GetVmInfo", 0, make(chan *dbus.Call, 1), data)
}

func TestSlowHandlerDelaysNobody(t *testing.T) {
	bus := dbustest.Lax(t)
	b := newBlocked()
	serve(t, bus, &handler{getVmInfo: b.getVmInfo}, Options{})
	c := bus.Connect(t)
	slow := goInfo(c, "slow")
	<-b.arrived
	for _, client := range []*dbus.Conn{c, bus.Connect(t)} {
		if fast := <-goInfo(client, "fast").Done; fast.Err != nil {
			t.Fatal(fast.Err)
		}
	}
	select {
	case <-slow.Done:
		t.Fatal("the slow call is done already")
	default:
	}
	close(b.goOn)
	if <-slow.Done; slow.Err != nil {
		t.Fatal(slow.Err)
	}
}

func TestCallsInProgressAreLimited(t *testing.T) {
	for _, test := range []struct {
		name    string
		limits  Limits
		clients int
	}{
		{"per sender", Limits{CallsPerSender: 3}, 1},
		{"per user", Limits{CallsPerUser: 3}, 3},
		{"in all", Limits{Calls: 3}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			bus := dbustest.Lax(t)
			b := newBlocked()
			serve(t, bus, &handler{getVmInfo: b.getVmInfo}, Options{Limits: test.limits})
			var clients []*dbus.Conn
			for range test.clients {
				clients = append(clients, bus.Connect(t))
			}
			var held []*dbus.Call
			for i := range 3 {
				held = append(held, goInfo(clients[i%test.clients], "held"))
				<-b.arrived
			}
			surplus := <-goInfo(clients[0], "fast").Done
			wantError(t, surplus.Err, errLimitsExceeded)
			if test.name == "per sender" {
				if ok := <-goInfo(bus.Connect(t), "fast").Done; ok.Err != nil {
					t.Error("another connection is not served:", ok.Err)
				}
			}
			close(b.goOn)
			for _, call := range held {
				if <-call.Done; call.Err != nil {
					t.Error(call.Err)
				}
			}
			if again := <-goInfo(clients[0], "fast").Done; again.Err != nil {
				t.Error("places are not given back:", again.Err)
			}
		})
	}
}

// A short request with a long answer counts for many, or one user's could take
// all memory.
func TestLongAnswersAreLimited(t *testing.T) {
	bus := dbustest.Lax(t)
	b := newBlocked()
	serve(t, bus, &handler{getVmInfo: b.getVmInfo, getVmLogs: func(ctx context.Context, s policy.Subject, req *conciergepb.GetVmLogsRequest) (*conciergepb.GetVmLogsResponse, error) {
		b.arrived <- req.Name
		<-b.goOn
		return &conciergepb.GetVmLogsResponse{}, nil
	}}, Options{})
	c := bus.Connect(t)
	logs := func() *dbus.Call {
		data, _ := proto.Marshal(&conciergepb.GetVmLogsRequest{Name: "vm"})
		return c.Object(ConciergeName, ConciergePath).Go(ConciergeInterface+".GetVmLogs", 0, make(chan *dbus.Call, 1), data)
	}
	var held []*dbus.Call
	for range 8 {
		held = append(held, logs())
		<-b.arrived
	}
	surplus := logs()
	select {
	case <-surplus.Done:
		wantError(t, surplus.Err, errLimitsExceeded)
	case <-b.arrived:
		t.Error("a ninth is served")
	}
	if other := <-goInfo(c, "fast").Done; other.Err != nil {
		t.Error("another call is not served:", other.Err)
	}
	close(b.goOn)
	for _, call := range held {
		if <-call.Done; call.Err != nil {
			t.Error(call.Err)
		}
	}
	if again := <-logs().Done; again.Err != nil {
		t.Error("places are not given back:", again.Err)
	}
}

func TestGateCountsBytes(t *testing.T) {
	g := newGate(Limits{BytesPerSender: 10, Bytes: 15}.withDefaults())
	one, two := senderKey{name: "1"}, senderKey{name: "2"}
	first, err := g.enter(one, 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.enter(one, 3); err == nil {
		t.Error("a sender got more than its share")
	}
	if _, err := g.enter(two, 8); err == nil {
		t.Error("everybody together got more than there is")
	}
	first.parsed()
	second, err := g.enter(two, 8)
	if err != nil {
		t.Error("bytes are not given back:", err)
	}
	first.leave()
	second.leave()
	if g.all != (load{}) || len(g.senders) != 0 || len(g.users) != 0 {
		t.Errorf("something is left: %+v", g)
	}
}

func TestShutdown(t *testing.T) {
	bus := dbustest.Lax(t)
	b := newBlocked()
	_, stop := serve(t, bus, &handler{getVmInfo: b.getVmInfo}, Options{})
	c := bus.Connect(t)
	held := goInfo(c, "held")
	<-b.arrived
	stop()
	// The handler's context ended, and its answer was still sent.
	var resp conciergepb.GetVmInfoResponse
	if <-held.Done; held.Err != nil {
		t.Fatal(held.Err)
	}
	if err := proto.Unmarshal(held.Body[0].([]byte), &resp); err != nil || resp.Success {
		t.Fatal(&resp, err)
	}
}

func TestHandlersHaveDeadlines(t *testing.T) {
	bus := dbustest.Lax(t)
	var start, stop atomic.Int64
	left := func(ctx context.Context) int64 {
		at, ok := ctx.Deadline()
		if !ok {
			return 0
		}
		return int64(time.Until(at).Round(time.Minute) / time.Minute)
	}
	serve(t, bus, &handler{
		startVm: func(ctx context.Context, _ policy.Subject, _ *conciergepb.StartVmRequest, _ []*os.File) (*conciergepb.StartVmResponse, error) {
			start.Store(left(ctx))
			return nil, errors.New("no")
		},
		stopVm: func(ctx context.Context, _ policy.Subject, _ *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
			stop.Store(left(ctx))
			return nil, errors.New("no")
		},
	}, Options{})
	c := bus.Connect(t)
	callProto(t, c, "StartVm", &conciergepb.StartVmRequest{}, new(conciergepb.StartVmResponse))
	callProto(t, c, "StopVm", &conciergepb.StopVmRequest{}, new(conciergepb.SuccessFailureResponse))
	if start.Load() != 10 || stop.Load() != 2 {
		t.Errorf("StartVm has %d minutes, StopVm %d", start.Load(), stop.Load())
	}
}

func TestACallerWhoLeavesEndsNoCall(t *testing.T) {
	bus := dbustest.Lax(t)
	b := newBlocked()
	ended := make(chan error, 1)
	serve(t, bus, &handler{getVmInfo: func(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
		resp, err := b.getVmInfo(ctx, s, req)
		if req.Name == "held" {
			ended <- err
		}
		return resp, err
	}}, Options{})
	leaver, other := bus.Connect(t), bus.Connect(t)
	goInfo(leaver, "held")
	<-b.arrived
	leaver.Close()
	// This answer comes after the news of the other's leaving.
	if ok := <-goInfo(other, "fast").Done; ok.Err != nil {
		t.Fatal(ok.Err)
	}
	close(b.goOn)
	if err := <-ended; err != nil {
		t.Fatal("the call was ended:", err)
	}
}
