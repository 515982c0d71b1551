package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A heard is one signal about a VM.
type heard struct {
	name   string // without "Signal"
	vm     string
	reason pb.VmStopReason
	info   *pb.VmInfo
	owner  string
}

// An ear hears the signals that reach one connection.
type ear struct {
	t  *testing.T
	ch chan *godbus.Signal
}

// listen asks for no match rule: signals about a user's VMs reach the user's
// connections without one.
func (c *client) listen() *ear {
	ch := make(chan *godbus.Signal, 256)
	c.conn.Signal(ch)
	c.t.Cleanup(func() { c.conn.RemoveSignal(ch) })
	return &ear{t: c.t, ch: ch}
}

// next waits for the next signal of vm_concierge.
func (e *ear) next() heard {
	e.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case s := <-e.ch:
			if h, ok := e.parse(s); ok {
				return h
			}
		case <-timeout.C:
			e.t.Fatal("no signal came")
		}
	}
}

func (e *ear) parse(s *godbus.Signal) (heard, bool) {
	e.t.Helper()
	member, ok := strings.CutPrefix(s.Name, dbus.ConciergeInterface+".")
	if !ok {
		return heard{}, false
	}
	h := heard{name: strings.TrimSuffix(member, "Signal")}
	b, _ := s.Body[0].([]byte)
	read := func(m proto.Message) {
		if err := proto.Unmarshal(b, m); err != nil {
			e.t.Fatalf("%s: %v", member, err)
		}
	}
	switch member {
	case dbus.VmStartingUpSignal:
		var m pb.VmStartingUpSignal
		read(&m)
		h.vm, h.owner = m.Name, m.OwnerId
	case dbus.VmStartedSignal:
		var m pb.VmStartedSignal
		read(&m)
		h.vm, h.owner, h.info = m.Name, m.OwnerId, m.VmInfo
	case dbus.VmStoppingSignal:
		var m pb.VmStoppingSignal
		read(&m)
		h.vm, h.owner = m.Name, m.OwnerId
	case dbus.VmStoppedSignal:
		var m pb.VmStoppedSignal
		read(&m)
		h.vm, h.owner, h.reason = m.Name, m.OwnerId, m.Reason
	default:
		e.t.Fatalf("unknown signal %s", member)
	}
	return h, true
}

// expect checks the next signals about a VM, in order.
func (e *ear) expect(vm string, names ...string) heard {
	e.t.Helper()
	var last heard
	for _, n := range names {
		last = e.next()
		if last.name != n || last.vm != vm {
			e.t.Fatalf("signal %s of %q, want %s of %q", last.name, last.vm, n, vm)
		}
	}
	return last
}

// silent checks that nothing was heard, after a call that the service has
// answered: whatever it had to say before, it has said. Some signals may have
// been said again, as by a service that does not know how far the last one came.
func (e *ear) silent(c *client, again ...string) {
	e.t.Helper()
	c.must("ListVms", &pb.ListVmsRequest{}, &pb.ListVmsResponse{})
	for {
		select {
		case s := <-e.ch:
			if h, ok := e.parse(s); ok && !slices.Contains(again, h.name) {
				e.t.Errorf("heard %s of %q", h.name, h.vm)
			}
		default:
			return
		}
	}
}
