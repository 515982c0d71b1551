package dbus

import (
	"context"
	"fmt"
	"sync"
)

// turns bound what is asked of others at a time: in all, and for each user, so
// that one who asks for much keeps nobody else waiting.
type turns struct {
	slots   chan struct{}
	perUser int
	// most bounds who waits, or has a turn, of one user; zero is for those who
	// are counted elsewhere.
	most int

	mu    sync.Mutex
	lines map[uint32]*line
}

// A line is where one user's wait for their turn.
type line struct {
	turns   chan struct{}
	waiting int // and having one
}

func newTurns(all, perUser, most int) *turns {
	return &turns{slots: make(chan struct{}, all), perUser: perUser, most: most, lines: map[uint32]*line{}}
}

// wait waits for a turn, first among the user's own, then among everybody's.
func (t *turns) wait(ctx context.Context, uid uint32) (release func(), err error) {
	t.mu.Lock()
	l := t.lines[uid]
	if l == nil {
		l = &line{turns: make(chan struct{}, t.perUser)}
		t.lines[uid] = l
	}
	if t.most > 0 && l.waiting >= t.most {
		t.mu.Unlock()
		return nil, fmt.Errorf("%d others of user %d wait already", l.waiting, uid)
	}
	l.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if l.waiting--; l.waiting == 0 {
			delete(t.lines, uid)
		}
	}
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		<-l.turns
		leave()
		return nil, context.Cause(ctx)
	}
	return func() {
		<-t.slots
		<-l.turns
		leave()
	}, nil
}
