package tremplin

import (
	"context"
	"errors"
	"slices"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// Whoever finds Incus starting may have a reason to want its database made anew:
// that it hangs at the old one.
func TestAResetWhileIncusStarts(t *testing.T) {
	_, s, host := newFakeIncus(t)
	s.lxd.mu.Lock()
	s.lxd.started = false
	s.lxd.mu.Unlock()
	starts, ends := make(chan bool), make(chan error)
	s.lxd.start = func(_ context.Context, reset bool) error {
		starts <- reset
		return <-ends
	}
	ask := func(reset bool) {
		t.Helper()
		if r, err := s.StartLxd(t.Context(), &pb.StartLxdRequest{ResetLxdDb: reset}); err != nil || r.Status != pb.StartLxdResponse_STARTING {
			t.Errorf("reset %v: %v, %v", reset, r, err)
		}
	}
	ask(false)
	if reset := <-starts; reset {
		t.Error("the first start resets")
	}
	ask(true)
	ask(false)
	ends <- errors.New("the database is broken")
	if reset := <-starts; !reset {
		t.Error("the second start does not reset")
	}
	ask(true) // which is being done
	ends <- nil
	s.running.Wait()
	if !s.isStarted() {
		t.Error("it has not started")
	}
	eventually(t, "the host hears of the end", func() bool { return host.has("STARTED") })
	if got := host.heard(); !slices.Equal(got, []string{"lxd STARTING", "lxd STARTED"}) {
		t.Errorf("the host heard %q", got)
	}
}
