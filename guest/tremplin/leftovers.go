package tremplin

import (
	"context"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// Pauses between attempts to remove a leftover.
const (
	leftoverPauseMin = 30 * time.Second
	leftoverPauseMax = 15 * time.Minute
)

// maxLeftovers bounds what is remembered; what is more is found at the next
// start.
const maxLeftovers = 256

// leftovers are what operations have left and could not remove: Incus is gone
// for long, or busy with it for longer than an operation may wait. Each is
// tried again, with growing pauses and whenever Incus has come back.
type leftovers struct {
	s        *Server
	pauseMin time.Duration // leftoverPauseMin, unless a test has no time
	awake    chan struct{}

	mu  sync.Mutex
	all map[string]*leftover
}

type leftover struct {
	remove func(context.Context) error
	pause  time.Duration
	next   time.Time
}

func newLeftovers(s *Server) *leftovers {
	return &leftovers{s: s, pauseMin: leftoverPauseMin, awake: make(chan struct{}, 1), all: map[string]*leftover{}}
}

// add has something removed later. remove may be called at any time until it
// succeeds, or there is no such thing.
func (l *leftovers) add(what string, why error, remove func(context.Context) error) {
	l.mu.Lock()
	_, known := l.all[what]
	full := len(l.all) >= maxLeftovers
	if !known && !full {
		l.all[what] = &leftover{remove: remove, pause: l.pauseMin, next: time.Now().Add(l.pauseMin)}
	}
	l.mu.Unlock()
	if full {
		l.s.log.Error("a leftover stays until the VM's next start", "what", what, "err", why)
		return
	}
	l.s.log.Warn("a leftover is removed later", "what", what, "err", why)
	l.wake()
}

// again is called when Incus has come back: what failed may work now.
func (l *leftovers) again() {
	l.mu.Lock()
	for _, o := range l.all {
		o.next = time.Time{}
	}
	l.mu.Unlock()
	l.wake()
}

func (l *leftovers) wake() {
	select {
	case l.awake <- struct{}{}:
	default:
	}
}

// run removes leftovers until the context ends.
func (l *leftovers) run(ctx context.Context) {
	timer := time.NewTimer(leftoverPauseMax)
	defer timer.Stop()
	for {
		timer.Reset(l.wait())
		select {
		case <-timer.C:
		case <-l.awake:
		case <-ctx.Done():
			return
		}
		// Its start, and that of its database, are no time to disturb it.
		if !l.s.isStarted() {
			continue
		}
		for what, o := range l.due() {
			l.try(ctx, what, o)
		}
	}
}

// wait is how long nothing is to be done.
func (l *leftovers) wait() time.Duration {
	started := l.s.isStarted()
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := leftoverPauseMax
	for _, o := range l.all {
		wait = min(wait, time.Until(o.next))
	}
	if !started {
		wait = max(wait, l.pauseMin)
	}
	return wait
}

func (l *leftovers) due() map[string]*leftover {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := map[string]*leftover{}
	for what, o := range l.all {
		if !time.Now().Before(o.next) {
			due[what] = o
		}
	}
	return due
}

func (l *leftovers) try(ctx context.Context, what string, o *leftover) {
	if ctx.Err() != nil {
		return
	}
	some, cancel := context.WithTimeout(ctx, cleanWait)
	err := o.remove(some)
	cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || incus.IsNotFound(err) {
		delete(l.all, what)
		l.s.log.Info("removed a leftover", "what", what)
		return
	}
	o.next, o.pause = time.Now().Add(o.pause), min(2*o.pause, leftoverPauseMax)
	l.s.log.Warn("a leftover stays for now", "what", what, "again", o.next, "err", err)
}

// discard removes a container that nobody shall see, now or later.
func (s *Server) discard(ctx context.Context, name string) {
	remove := func(ctx context.Context) error { return s.removeOnceFree(ctx, name) }
	switch err := remove(ctx); {
	case incus.IsNotFound(err):
	case err == nil:
		s.log.Info("removed a leftover", "container", name)
	default:
		s.left.add("the container "+name, err, remove)
	}
}

// discardNow is discard for what an operation has left, although the
// operation's time is over. It waits for an Incus that is started again.
func (s *Server) discardNow(temp string) {
	ctx, cancel := cleaning()
	defer cancel()
	// If Incus is not there in time, the removal fails and is tried later.
	s.ensureLxd(ctx)
	s.discard(ctx, temp)
}
