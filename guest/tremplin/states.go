package tremplin

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// eventsPause is the time between two attempts to hear Incus' events.
const eventsPause = 500 * time.Millisecond

// states knows which containers run, and tells the host of each that stops,
// once, whoever stopped it and whether or not Incus was there to see it.
type states struct {
	s     *Server
	awake chan struct{}
	said  string // the last complaint

	mu      sync.Mutex
	known   bool // Incus has said which
	running map[string]bool
}

func newStates(s *Server) *states {
	return &states{s: s, awake: make(chan struct{}, 1), running: map[string]bool{}}
}

// wake makes watch look for Incus now.
func (t *states) wake() {
	select {
	case t.awake <- struct{}{}:
	default:
	}
}

// watch follows Incus' events, from one incusd to the next.
func (t *states) watch(ctx context.Context) {
	pause := time.NewTicker(eventsPause)
	defer pause.Stop()
	for {
		if t.s.isStarted() {
			t.follow(ctx)
		}
		select {
		case <-pause.C:
		case <-t.awake:
		case <-ctx.Done():
			return
		}
	}
}

func (t *states) follow(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := t.s.incus.Lifecycles(ctx, func() {
		// What happened before is in the list, and what happens from now on in
		// the events; in both is as good.
		err := t.reconcile(ctx)
		if err == nil {
			t.said = ""
			return
		}
		t.complain(ctx, "which containers run is found out later", err)
		cancel()
	}, t.happened)
	t.complain(ctx, "Incus' events are followed again", err)
}

// complain logs why Incus is asked again, once.
func (t *states) complain(ctx context.Context, what string, err error) {
	if why := err.Error(); ctx.Err() == nil && why != t.said {
		t.said = why
		t.s.log.Warn(what, "err", err)
	}
}

// reconcile compares what is known with what Incus says, once that has started
// wholly. Containers live on when it dies, and it may not know at once of each:
// such a one counts as before, and the error is that Incus is to be asked again.
//
// The first time, the host is told of each that does not run: what ran when an
// earlier tremplin died may have stopped since, and only the host knows of it.
func (t *states) reconcile(ctx context.Context) error {
	if err := t.s.incus.WaitReady(ctx); err != nil {
		return err
	}
	all, err := t.s.incus.Instances(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	before, now, first := t.running, map[string]bool{}, !t.known
	var idle []string
	for _, i := range all {
		switch {
		case strings.HasPrefix(i.Name, ownPrefix):
		case i.Status == incus.Stopped:
			if first && !before[i.Name] {
				idle = append(idle, i.Name)
			}
		case i.Status != incus.Unknown:
			now[i.Name] = true
		default:
			if first || before[i.Name] {
				now[i.Name] = true
			}
			err = fmt.Errorf("Incus cannot tell whether %s runs", i.Name)
		}
	}
	began, ended := without(now, before), without(before, now)
	t.running, t.known = now, true
	t.mu.Unlock()
	t.s.left.again()
	for _, name := range began {
		t.s.host.runs(name)
	}
	for _, name := range ended {
		t.tell(name)
	}
	for _, name := range idle {
		// The list may have taken long, and what is started now is told anyway.
		if t.s.jobs.is(name, jobStart) {
			continue
		}
		if i, err := t.s.incus.Instance(ctx, name); err == nil && i.Status == incus.Stopped {
			t.s.host.shutdown(name)
		}
	}
	return err
}

// without are the names of some that are not among others.
func without(some, others map[string]bool) (names []string) {
	for name := range some {
		if !others[name] {
			names = append(names, name)
		}
	}
	return names
}

func (t *states) happened(l incus.Lifecycle) {
	switch l.Action {
	case "instance-started", "instance-restarted":
		t.started(l.Instance)
	case "instance-stopped", "instance-shutdown":
		if t.forget(l.Instance) {
			t.tell(l.Instance)
		}
	}
}

// started notes that a container runs.
func (t *states) started(name string) {
	if strings.HasPrefix(name, ownPrefix) {
		return
	}
	t.mu.Lock()
	t.running[name] = true
	t.mu.Unlock()
	t.s.host.runs(name)
}

// forget notes that a container does not run, and tells whether it did.
func (t *states) forget(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ran := t.running[name]
	delete(t.running, name)
	return ran
}

// agrees tells whether an answer of Incus is what its events have told.
func (t *states) agrees(i incus.Instance) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.known || t.running[i.Name] == (i.Status != incus.Stopped)
}

// believe makes an answer of Incus what is known: its events have not told of it
// for so long that they will not.
func (t *states) believe(i incus.Instance) {
	if i.Status != incus.Stopped {
		t.started(i.Name)
	} else if t.forget(i.Name) {
		t.tell(i.Name)
	}
}

func (t *states) tell(name string) {
	t.s.log.Info("container stopped", "container", name)
	t.s.host.shutdown(name)
}

// list returns the containers that run.
func (t *states) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := make([]string, 0, len(t.running))
	for name := range t.running {
		names = append(names, name)
	}
	return names
}
