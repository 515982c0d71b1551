package hostcalls

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// queueMost bounds the notices that wait.
	queueMost = 256
	// queuePatience is how long the host may be away before a notice is old that
	// is not kept.
	queuePatience = 10 * time.Minute
	// queuePause is between attempts.
	queuePause = 500 * time.Millisecond
)

// A Notice is something to be told to the host.
type Notice struct {
	// Name is for the log.
	Name string
	// Key, if it is not empty, lets the notice take the place of an older one
	// with the same key that is not on its way yet: only the last counts.
	Key string
	// Keep saves the notice when there is no room, where the oldest of the
	// others goes instead, and however long the host is away. It is for what
	// ends something, for which somebody waits.
	Keep bool
	// Send makes the call.
	Send func(ctx context.Context) error
}

// A Queue sends notices one after the other, and again while the host is away.
type Queue struct {
	log  *slog.Logger
	some chan struct{}

	mu      sync.Mutex
	waiting []entry
}

type entry struct {
	Notice
	since time.Time
}

// NewQueue returns an empty queue; Run empties it.
func NewQueue(log *slog.Logger) *Queue {
	return &Queue{log: log, some: make(chan struct{}, 1)}
}

// Push never waits.
func (q *Queue) Push(n Notice) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n.Key != "" {
		for i, w := range q.waiting {
			if w.Key == n.Key {
				q.remove(i)
				break
			}
		}
	}
	if len(q.waiting) >= queueMost {
		q.makeRoom()
	}
	q.waiting = append(q.waiting, entry{n, time.Now()})
	select {
	case q.some <- struct{}{}:
	default:
	}
}

// makeRoom drops the oldest notice that may go, or the oldest.
func (q *Queue) makeRoom() {
	victim := 0
	for i, w := range q.waiting {
		if !w.Keep {
			victim = i
			break
		}
	}
	q.log.Warn("a notice is dropped, too many wait for the host", "notice", q.waiting[victim].Name)
	q.remove(victim)
}

func (q *Queue) remove(i int) { q.waiting = append(q.waiting[:i], q.waiting[i+1:]...) }

func (q *Queue) take() (entry, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.waiting = nil // lets the memory go
		return entry{}, false
	}
	e := q.waiting[0]
	q.waiting = q.waiting[1:]
	return e, true
}

// Run sends until ctx is done. It is called once.
func (q *Queue) Run(ctx context.Context) {
	for {
		e, ok := q.take()
		if !ok {
			select {
			case <-q.some:
				continue
			case <-ctx.Done():
				return
			}
		}
		q.deliver(ctx, e)
		if ctx.Err() != nil {
			return
		}
	}
}

// Flush sends what waits, once each, until ctx is done; for the time after Run.
func (q *Queue) Flush(ctx context.Context) {
	for ctx.Err() == nil {
		e, ok := q.take()
		if !ok {
			return
		}
		if err := e.Send(ctx); err != nil {
			q.log.Warn("the host did not take a notice", "notice", e.Name, "err", err)
		}
	}
}

func (q *Queue) deliver(ctx context.Context, e entry) {
	for {
		err := e.Send(ctx)
		switch {
		case err == nil:
			return
		case ctx.Err() != nil:
			q.putBack(e)
			return
		case !passing(err) || !e.Keep && time.Since(e.since) > queuePatience:
			q.log.Warn("the host did not take a notice", "notice", e.Name, "err", err)
			return
		case q.replaced(e):
			return
		}
		t := time.NewTimer(queuePause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// putBack leaves a notice that was on its way at the end to Flush.
func (q *Queue) putBack(e entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append([]entry{e}, q.waiting...)
}

// replaced says whether a newer notice has made this one pointless.
func (q *Queue) replaced(e entry) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.waiting {
		if e.Key != "" && w.Key == e.Key {
			return true
		}
	}
	return false
}

// passing says whether a failure is one of the way to the host, or of a host
// that is not ready yet, and may go away by itself.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.FailedPrecondition, codes.ResourceExhausted:
		return true
	}
	return false
}
