package dbus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// tally counts calls by method and outcome.
type tally struct {
	mu    sync.Mutex
	calls map[string]int
}

func (o *tally) Method(iface, member string) func(time.Duration, Outcome) {
	return func(took time.Duration, outcome Outcome) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if took < 0 {
			outcome = "negative"
		}
		o.calls[iface+"."+member+" "+string(outcome)]++
	}
}

func TestObserver(t *testing.T) {
	bus := dbustest.Lax(t)
	o := &tally{calls: map[string]int{}}
	serve(t, bus, &handler{
		getVmInfo: func(context.Context, policy.Subject, *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
			return &conciergepb.GetVmInfoResponse{}, nil
		},
		stopVm: func(context.Context, policy.Subject, *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
			return nil, errors.New("no")
		},
		listVms: func(context.Context, policy.Subject, *conciergepb.ListVmsRequest) (*conciergepb.ListVmsResponse, error) {
			panic("a defect")
		},
		getState: func(context.Context, policy.Subject) (State, error) { return State{}, errors.New("no") },
	}, Options{Observer: o})
	c := bus.Connect(t)
	for _, m := range []string{"GetVmInfo", "StopVm", "ListVms"} {
		invoke(t, c, ConciergeInterface, m, []byte{})
	}
	invoke(t, c, ConciergeInterface, "GetVmInfo", "no bytes")
	invoke(t, c, ConciergeInterface, "NoSuchMethod", []byte{})
	invoke(t, c, Concierge1Name, "GetState")
	o.mu.Lock()
	defer o.mu.Unlock()
	want := map[string]int{
		ConciergeInterface + ".GetVmInfo ok": 1, ConciergeInterface + ".GetVmInfo error": 1,
		ConciergeInterface + ".StopVm failed": 1, ConciergeInterface + ".ListVms error": 1, Concierge1Name + ".GetState error": 1,
	}
	for call, n := range want {
		if o.calls[call] != n {
			t.Errorf("%s: %d times, want %d", call, o.calls[call], n)
		}
	}
	if len(o.calls) != len(want) {
		t.Errorf("%v", o.calls)
	}
}
