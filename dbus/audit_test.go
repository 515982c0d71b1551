package dbus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// auditLog keeps what is logged.
type auditLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *auditLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the lines of the audit since the last call.
func (l *auditLog) take(t *testing.T) (lines []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for sc := bufio.NewScanner(&l.b); sc.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line["audit"] == true {
			lines = append(lines, fmt.Sprintf("%v %v %v %v %v", line["uid"], line["name"], line["method"], line["owner"], line["allowed"]))
		}
	}
	l.b.Reset()
	return lines
}

// Each use of the administrator's right is one line, whether it was allowed or
// not, and whatever else is not worth a line.
func TestAudit(t *testing.T) {
	bus := dbustest.Lax(t)
	user, manager, root := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Games), bus.ConnectAs(t, dbustest.Root)
	newStandIn(t, bus, users(map[string][]string{
		nameOf(user): {policy.ActionUse}, nameOf(manager): {policy.ActionUse, policy.ActionManageOthers},
	}))
	out := &auditLog{}
	serve(t, bus, &handler{
		getVmInfo:  echo,
		stopAllVms: func(context.Context, policy.Subject) error { return nil },
		getState:   func(context.Context, policy.Subject) (State, error) { return State{}, nil },
	}, Options{Polkit: true, Log: slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelError}))})
	ofOwner := func(owner string) func(c *dbus.Conn) {
		return func(c *dbus.Conn) {
			callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{OwnerId: owner}, new(conciergepb.GetVmInfoResponse))
		}
	}
	plain := func(iface, member string) func(c *dbus.Conn) {
		return func(c *dbus.Conn) { invoke(t, c, iface, member) }
	}
	for _, test := range []struct {
		what   string
		client *dbus.Conn
		do     func(*dbus.Conn)
		want   string // without the caller's uid and name
	}{
		{"a user's own", user, ofOwner(""), ""},
		{"a user's label", user, ofOwner("x"), ""},
		{"a user, another's", user, ofOwner("2"), ConciergeInterface + ".GetVmInfo 2 false"},
		{"a user, nobody's", user, ofOwner("4000000000"), ConciergeInterface + ".GetVmInfo 4000000000 false"},
		{"a user, all", user, plain(ConciergeInterface, "StopAllVms"), ""},
		{"a user's state", user, plain(Concierge1Name, "GetState"), ""},
		{"a user's signals", user, plain(Concierge1Name, "Subscribe"), ""},
		{"a manager's own", manager, ofOwner(""), ""},
		{"a manager, another's", manager, ofOwner("2"), ConciergeInterface + ".GetVmInfo 2 true"},
		{"a manager, nobody's", manager, ofOwner("4000000000"), ConciergeInterface + ".GetVmInfo 4000000000 false"},
		{"a manager, all", manager, plain(ConciergeInterface, "StopAllVms"), ""},
		{"a manager's signals", manager, plain(Concierge1Name, "Subscribe"), Concierge1Name + ".Subscribe everybody true"},
		{"root's own", root, ofOwner("0"), ""},
		{"root, another's", root, ofOwner("2"), ConciergeInterface + ".GetVmInfo 2 true"},
		{"root, all", root, plain(ConciergeInterface, "StopAllVms"), ConciergeInterface + ".StopAllVms everybody true"},
		{"root's state", root, plain(Concierge1Name, "GetState"), Concierge1Name + ".GetState everybody true"},
		{"root's signals", root, plain(Concierge1Name, "Subscribe"), Concierge1Name + ".Subscribe everybody true"},
		{"no more signals", root, plain(Concierge1Name, "Unsubscribe"), ""},
	} {
		test.do(test.client)
		uid := map[*dbus.Conn]uint32{user: 1, manager: dbustest.Games.UID, root: 0}[test.client]
		var want []string
		if test.want != "" {
			want = []string{fmt.Sprintf("%d %s %s", uid, nameOf(test.client), test.want)}
		}
		if got := out.take(t); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %q, want %q", test.what, got, want)
		}
	}
}

// Whom polkit grants the administrator's right without a password hears of
// everybody's VMs, until polkit takes it away.
func TestAdministratorsHearEverything(t *testing.T) {
	bus := dbustest.System(t)
	user, manager := bus.ConnectAs(t, dbustest.Bin), bus.ConnectAs(t, dbustest.Games)
	p := newStandIn(t, bus, users(map[string][]string{
		nameOf(user): {policy.ActionUse}, nameOf(manager): {policy.ActionManageOthers},
	}))
	s, _ := serve(t, bus, &handler{}, Options{Polkit: true})
	for _, c := range []*dbus.Conn{user, manager} {
		if _, err := invoke(t, c, Concierge1Name, "Subscribe"); err != nil {
			t.Fatal(err)
		}
	}
	tell := func(vm string) {
		if err := s.Emit(context.Background(), 1, VmStartedSignal, &conciergepb.VmStartedSignal{Name: vm}); err != nil {
			t.Fatal(err)
		}
	}
	curious, all := listen(t, "another user", user), listen(t, "a manager", manager, "vm")
	tell("vm")
	curious.check(t)
	all.check(t)
	p.asked()
	p.change(t, users(nil))
	// The review is over when it has an answer and has been noted.
	if q := <-p.questions; q.action != policy.ActionManageOthers || q.name != nameOf(manager) {
		t.Fatalf("asked %+v", q)
	}
	peers := s.current.Load().peers
	for len(peers.watchers()) > 0 {
		invoke(t, manager, peerName, "Ping")
	}
	all = listen(t, "somebody who was a manager", manager)
	tell("another")
	all.check(t)
}
