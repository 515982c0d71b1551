package tremplin

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// Containers outlive Incus. One of which the next one knows nothing yet has not
// stopped; one that stopped meanwhile has; and nothing is missed afterwards.
func TestContainersOutliveIncus(t *testing.T) {
	f, s, host := newFakeIncus(t)
	names := func() []string {
		all := s.states.list()
		slices.Sort(all)
		return all
	}
	f.set(func() { f.status["penguin"], f.status["web"] = incus.Running, incus.Running })
	f.end()
	f.begin()
	eventually(t, "both run", func() bool { return slices.Equal(names(), []string{"penguin", "web"}) })

	f.end()
	f.set(func() { f.status["penguin"], f.status["web"], f.early, f.lists = incus.Unknown, incus.Stopped, 3, 0 })
	f.begin()
	eventually(t, "it is asked again", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.lists > 1
	})
	// What a container may be that is not Running: its programs can say so.
	f.set(func() { f.status["penguin"], f.lists = "Ready", 0 })
	eventually(t, "it knows of both", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.lists > 0 && len(f.events) > 0
	})
	eventually(t, "the host hears of web", func() bool { return host.has("web") })
	if got := host.heard(); !slices.Equal(got, []string{"web has stopped"}) || !slices.Equal(names(), []string{"penguin"}) {
		t.Errorf("the host heard %q; what runs is %q", got, names())
	}
	// However often it is told.
	eventually(t, "the host hears of penguin", func() bool {
		f.happens("instance-stopped", "penguin")
		return host.has("penguin")
	})
	if got := host.heard(); !slices.Equal(got, []string{"web has stopped", "penguin has stopped"}) {
		t.Errorf("the host heard %q", got)
	}
}

// What stopped between one tremplin and the next, the next one tells: nobody else
// does.
func TestContainersThatStoppedBefore(t *testing.T) {
	f, s, host := newFakeIncus(t, func(f *fakeIncus) {
		f.status["penguin"], f.status["web"], f.status["late"] = incus.Stopped, incus.Running, incus.Unknown
		f.status[ownPrefix+"import"] = incus.Stopped
	})
	eventually(t, "the host hears of penguin", func() bool { return host.has("penguin has stopped") })
	f.set(func() { f.status["late"] = incus.Stopped })
	eventually(t, "the host hears of the one that Incus did not know at once", func() bool { return host.has("late has stopped") })
	if got := host.heard(); !slices.Equal(got, []string{"penguin has stopped", "late has stopped"}) || !slices.Equal(s.states.list(), []string{"web"}) {
		t.Errorf("the host heard %q; what runs is %q", got, s.states.list())
	}
}

// Incus tells that a container has stopped before it lets go of it, and until
// then says that it runs.
func TestAStartWaitsForTheEndOfAStop(t *testing.T) {
	f, s, host := newFakeIncus(t)
	eventually(t, "its events are followed", s.states.areKnown)
	f.set(func() { f.status["penguin"], f.busy = incus.Running, 2 })
	eventually(t, "it runs", func() bool {
		f.happens("instance-started", "penguin")
		return len(s.states.list()) > 0
	})
	f.happens("instance-shutdown", "penguin")
	eventually(t, "it has stopped", func() bool { return host.has("penguin has stopped") })
	f.set(func() { f.asks = 0 })
	answered := make(chan error, 1)
	go func() {
		r, err := s.StartContainer(t.Context(), &pb.StartContainerRequest{ContainerName: "penguin"})
		if err == nil && r.Status != pb.StartContainerResponse_STARTING {
			err = fmt.Errorf("the answer is %v", r)
		}
		answered <- err
	}()
	eventually(t, "Incus is asked", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asks > 0
	})
	f.set(func() { f.status["penguin"] = incus.Stopped })
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start has ended", func() bool { return host.has("penguin STARTED") || host.has("penguin FAILED") })
	if host.has("FAILED") {
		t.Errorf("the host heard %q", host.heard())
	}
}

// What Incus' events do not tell is found out by who asks.
func TestAnEndWithoutAnEvent(t *testing.T) {
	f, s, host := newFakeIncus(t)
	s.agreeWait = 0
	eventually(t, "its events are followed", s.states.areKnown)
	for _, status := range []string{incus.Running, incus.Stopped} {
		f.set(func() { f.status["penguin"] = status })
		r, err := s.GetContainerInfo(t.Context(), &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		if runs := len(s.states.list()) > 0; err != nil || runs != (status == incus.Running) {
			t.Errorf("%s: what runs is %q; %v, %v", status, s.states.list(), r, err)
		}
	}
	eventually(t, "the host hears of it", func() bool { return host.has("penguin has stopped") })
}

// A host that comes back does not hear of the end of a container that runs again.
func TestAnEndThatIsNotSoAnyMore(t *testing.T) {
	f, s, host := newFakeIncus(t)
	eventually(t, "its events are followed", s.states.areKnown)
	away := func(fails int) {
		host.mu.Lock()
		defer host.mu.Unlock()
		host.fails = fails
	}
	away(1 << 30)
	for _, name := range []string{"penguin", "web", "third"} {
		f.happens("instance-started", name)
		f.happens("instance-shutdown", name)
	}
	eventually(t, "the first is on its way, and the others wait", func() bool {
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		return len(s.host.waiting) == 2
	})
	s.host.startLxd(pb.StartLxdProgress_STARTED, "")
	for _, name := range []string{"penguin", "third"} { // the first and another one
		f.happens("instance-started", name)
	}
	eventually(t, "the ends of both are taken back", func() bool {
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		return s.host.sending == "" && len(s.host.waiting) == 2 || len(s.host.waiting) == 1
	})
	away(0)
	eventually(t, "the host hears all", func() bool { return host.has("lxd STARTED") })
	if got := host.heard(); !slices.Equal(got, []string{"web has stopped", "lxd STARTED"}) {
		t.Errorf("the host heard %q", got)
	}
}

// While its monitor does not answer, nobody is told that a container is
// stopped.
func TestAContainerOfWhichIncusKnowsNothing(t *testing.T) {
	f, s, _ := newFakeIncus(t)
	f.set(func() { f.status["penguin"] = incus.Unknown })
	asked := make(chan *pb.GetContainerInfoResponse, 1)
	go func() {
		r, err := s.GetContainerInfo(t.Context(), &pb.GetContainerInfoRequest{ContainerName: "penguin"})
		if err != nil {
			t.Error(err)
		}
		asked <- r
	}()
	eventually(t, "Incus is asked again", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asks > 1 || len(asked) > 0
	})
	f.set(func() { f.status["penguin"] = incus.Stopped })
	if r := <-asked; r.GetStatus() != pb.GetContainerInfoResponse_STOPPED {
		t.Errorf("it is %v", r)
	}
}

// What cannot be removed at once is removed later: when Incus is not busy any
// more, or there again.
func TestLeftoversAreRemovedLater(t *testing.T) {
	f, s, _ := newFakeIncus(t)
	gone := func(name string) func() bool {
		return func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.status[name] == ""
		}
	}
	f.set(func() { f.status["auberge-create-1"], f.busy = incus.Stopped, 1<<30 })
	ctx, cancel := cleaning()
	cancel()
	s.discard(ctx, "auberge-create-1")
	f.set(func() { f.busy = 0 })
	eventually(t, "it is removed when Incus has let go of it", gone("auberge-create-1"))

	s.left.mu.Lock()
	s.left.pauseMin = time.Hour
	s.left.mu.Unlock()
	f.set(func() { f.status["auberge-create-2"] = incus.Stopped })
	f.end()
	s.discard(t.Context(), "auberge-create-2")
	f.begin()
	eventually(t, "it is removed when Incus is back", gone("auberge-create-2"))
	eventually(t, "nothing is left to do", func() bool {
		s.left.mu.Lock()
		defer s.left.mu.Unlock()
		return len(s.left.all) == 0
	})
}

func (t *states) areKnown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known
}
