package dbus

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestWhoMayActOnWhoseVMs(t *testing.T) {
	bus := dbustest.System(t)
	subjects := make(chan policy.Subject, 1)
	serve(t, bus, &handler{
		getVmInfo: func(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
			subjects <- s
			return echo(ctx, s, req)
		},
		destroyDiskImage: func(_ context.Context, s policy.Subject, _ *conciergepb.DestroyDiskImageRequest) (*conciergepb.DestroyDiskImageResponse, error) {
			subjects <- s
			return &conciergepb.DestroyDiskImageResponse{}, nil
		},
		connectVsock: func(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, error) {
			subjects <- s
			return oneFile(t)(ctx, s, name, port)
		},
	}, Options{})
	root, daemon, bin := bus.ConnectAs(t, dbustest.Root), bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Bin)

	for _, test := range []struct {
		name    string
		client  *dbus.Conn
		word    string
		want    string // the error, or
		wantUID uint32
	}{
		{"nothing is the caller", daemon, "", "success", 1},
		{"the caller's uid", daemon, "1", "success", 1},
		{"a label", daemon, "abc", "success", 1},
		{"another user's uid", daemon, "2", errAccessDenied, 0},
		{"the same the other way round", bin, "1", errAccessDenied, 0},
		{"root's uid", daemon, "0", errAccessDenied, 0},
		{"nobody's uid", daemon, "4000000000", errAccessDenied, 0},
		{"an administrator for a user", root, "1", "success", 1},
		{"an administrator for nobody", root, "4000000000", errAccessDenied, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			check := func(member string, err error) {
				t.Helper()
				if got := errorName(err); got != test.want {
					t.Errorf("%s: got %v, want %s", member, err, test.want)
				}
				if err == nil {
					if s := <-subjects; s.Owner.UID != test.wantUID {
						t.Errorf("%s: the owner is %+v", member, s.Owner)
					}
				}
			}
			check("GetVmInfo", callProto(t, test.client, "GetVmInfo",
				&conciergepb.GetVmInfoRequest{OwnerId: test.word}, new(conciergepb.GetVmInfoResponse)))
			check("DestroyDiskImage", callProto(t, test.client, "DestroyDiskImage",
				&conciergepb.DestroyDiskImageRequest{CryptohomeId: test.word}, new(conciergepb.DestroyDiskImageResponse)))
			_, err := invoke(t, test.client, Concierge1Name, "ConnectVsock", "vm", test.word, uint32(1))
			check("ConnectVsock", err)
		})
	}

	t.Run("the caller is whom the bus says", func(t *testing.T) {
		c := bus.ConnectAs(t, dbustest.User{UID: 2, GID: 2, Groups: []uint32{2, 5}})
		if err := callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{}, new(conciergepb.GetVmInfoResponse)); err != nil {
			t.Fatal(err)
		}
		s := <-subjects
		if s.Caller.UID != 2 || !slices.Contains(s.Caller.Groups, 5) || s.Caller.Name != c.Names()[0] {
			t.Errorf("%+v", s.Caller)
		}
	})
	t.Run("an owner word that is none is the response's reason", func(t *testing.T) {
		var resp conciergepb.DestroyDiskImageResponse
		if err := callProto(t, daemon, "DestroyDiskImage", &conciergepb.DestroyDiskImageRequest{CryptohomeId: "a/b"}, &resp); err != nil {
			t.Fatal(err)
		}
		if resp.Status != conciergepb.DiskImageStatus_DISK_STATUS_FAILED || !strings.Contains(resp.FailureReason, "owner") {
			t.Error(&resp)
		}
	})
	t.Run("the bus keeps away what is not in the policy", func(t *testing.T) {
		for _, member := range []string{ConciergeInterface + ".StartArcVm", propertiesName + ".Set", peerName + ".GetMachineId"} {
			err := daemon.Object(ConciergeName, ConciergePath).Call(member, 0).Err
			wantError(t, err, errAccessDenied)
		}
		reply, err := daemon.RequestName(ConciergeName+".Other", 0)
		if errorName(err) != errAccessDenied {
			t.Error(reply, err)
		}
	})
	t.Run("only the service's user may have its name", func(t *testing.T) {
		reply, err := daemon.RequestName(ConciergeName, dbus.NameFlagReplaceExisting)
		if errorName(err) != errAccessDenied {
			t.Error(reply, err)
		}
	})
}

func TestThePolicyLetsEverybodyCallTheTable(t *testing.T) {
	bus := dbustest.System(t)
	serve(t, bus, &handler{}, Options{})
	c := bus.ConnectAs(t, dbustest.Daemon)
	methods := map[string][]string{
		introspectableName: {"Introspect"}, peerName: {"Ping"}, propertiesName: {"Get", "GetAll"},
	}
	daemons := map[string]bool{} // what is not for everybody
	for _, m := range ConciergeService(nil).Methods {
		methods[ConciergeInterface] = append(methods[ConciergeInterface], m.Name)
		daemons[m.Name] = m.Right == policy.RightDaemon
	}
	for _, m := range Concierge1Interface(nil).Methods {
		methods[Concierge1Name] = append(methods[Concierge1Name], m.Name)
		daemons[m.Name] = m.Right == policy.RightDaemon
	}
	for iface, members := range methods {
		for _, member := range members {
			// Of the wrong type for all of them: the service says so, and not
			// the bus.
			want := errInvalidArgs
			if daemons[member] {
				want = errAccessDenied
			}
			if _, err := invoke(t, c, iface, member, 1.5); errorName(err) != want {
				t.Errorf("%s.%s: %v", iface, member, err)
			}
		}
	}
}

func TestRightsWithoutAnOwnerWord(t *testing.T) {
	s := &Server{opts: Options{DaemonUIDs: []uint32{7}, UserExists: policy.UserExists}, log: slog.New(slog.DiscardHandler)}
	c := &call{message: &message{}, session: &session{server: s}}
	for _, test := range []struct {
		right             policy.Right
		uid               uint32
		denied, everybody bool
	}{
		{right: policy.RightAny, uid: 5},
		{right: policy.RightAny, uid: 0},
		{right: policy.RightSelf, uid: 5},
		{right: policy.RightSelf, uid: 0, everybody: true},
		{right: policy.RightAdmin, uid: 0},
		{right: policy.RightAdmin, uid: 5, denied: true},
		{right: policy.RightAdmin, uid: 7, denied: true},
		{right: policy.RightDaemon, uid: 7},
		{right: policy.RightDaemon, uid: 5, denied: true},
		{right: policy.RightDaemon, uid: 0, denied: true},
		{right: "", uid: 0, denied: true},
		{right: "all", uid: 5, denied: true},
	} {
		// A word that is there all the same is nobody's business; administrators
		// may name whom they act for.
		owner := test.uid
		if test.right == policy.RightAdmin || test.right == policy.RightDaemon {
			owner = 1
		}
		p := &peer{caller: policy.Caller{UID: test.uid}}
		got, err := c.authorize(t.Context(), p, rule{right: test.right}, "1")
		if errors.Is(err, policy.ErrDenied) != test.denied || !test.denied && (got.Owner.UID != owner || got.Everybody != test.everybody) {
			t.Errorf("%q for %d: %+v, %v", test.right, test.uid, got, err)
		}
	}
}

// Daemons name an owner as daemons do, labels included; for others that is no
// owner word, and the right is refused before the word is looked at.
func TestOwnerWordOfDaemons(t *testing.T) {
	s := &Server{opts: Options{DaemonUIDs: []uint32{7}, UserExists: func(uint32) bool { return false }}, log: slog.New(slog.DiscardHandler)}
	c := &call{message: &message{}, session: &session{server: s}}
	ask := func(right policy.Right, uid uint32, word string) (policy.Subject, error) {
		return c.authorize(t.Context(), &peer{caller: policy.Caller{UID: uid}}, rule{right: right}, word)
	}
	for word, want := range map[string]policy.Owner{
		"":        {UID: 7, Word: "7", All: true},
		"64101":   {UID: 64101, Word: "64101"},
		"64101:x": {UID: 64101, Label: "x", Word: "x"},
		"0":       {UID: 0, Word: "0"},
	} {
		if got, err := ask(policy.RightDaemon, 7, word); err != nil || got.Owner != want || got.Everybody {
			t.Errorf("%q: %+v, %v", word, got, err)
		}
	}
	for _, word := range []string{"x", "64101:", "1:a/b", "01"} {
		if _, err := ask(policy.RightDaemon, 7, word); !errors.Is(err, policy.ErrOwner) {
			t.Errorf("%q: %v", word, err)
		}
	}
	for _, uid := range []uint32{0, 5} {
		for _, word := range []string{"", "5", "1:a/b"} {
			if _, err := ask(policy.RightDaemon, uid, word); !errors.Is(err, policy.ErrDenied) {
				t.Errorf("uid %d with %q: %v", uid, word, err)
			}
		}
		if _, err := ask(policy.RightOwn, uid, "64101:x"); !errors.Is(err, policy.ErrOwner) {
			t.Errorf("uid %d names an owner as daemons do: %v", uid, err)
		}
	}
	if _, err := ask(policy.RightOwn, 7, "64101:x"); !errors.Is(err, policy.ErrOwner) {
		t.Errorf("a daemon where everybody may call: %v", err)
	}
}

func TestIdentityIsAskedOnceAndForgotten(t *testing.T) {
	bus := dbustest.Lax(t)
	s, _ := serve(t, bus, &handler{getVmInfo: echo}, Options{BroadcastSignals: true})
	peers := s.current.Load().peers
	known := func(name string) bool {
		peers.mu.Lock()
		defer peers.mu.Unlock()
		return peers.peers[name] != nil
	}
	c, other := bus.Connect(t), bus.Connect(t)
	name := c.Names()[0]
	var calls []*dbus.Call
	for range 20 {
		calls = append(calls, goInfo(c, "vm"))
	}
	for _, call := range calls {
		if <-call.Done; call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	if !known(name) {
		t.Error("the caller is not known after its calls")
	}
	c.Close()
	// The answer to a call comes after the news that arrived before it; the
	// call is made when the bus has let go of the other connection.
	for other.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, name).Err == nil {
	}
	if ok := <-goInfo(other, "vm").Done; ok.Err != nil {
		t.Fatal(ok.Err)
	}
	if known(name) {
		t.Error("the caller is still known after it left")
	}
}

func TestOneQuestionForConcurrentCalls(t *testing.T) {
	asked := make(chan string, 100)
	answer := make(chan struct{})
	r := newRegistry(func(_ context.Context, name string) (policy.Caller, error) {
		asked <- name
		<-answer
		return policy.Caller{Name: name, UID: 7}, nil
	})
	peers := map[*peer]bool{}
	for range 10 {
		peers[r.meet(t.Context(), ":1.1")] = true
	}
	close(answer)
	for p := range peers {
		if c, err := p.identity(t.Context()); err != nil || c.UID != 7 {
			t.Error(c, err)
		}
	}
	r.close()
	if len(peers) != 1 || len(asked) != 1 {
		t.Errorf("%d peers, %d questions", len(peers), len(asked))
	}
}
