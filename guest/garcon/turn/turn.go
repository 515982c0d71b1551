// Package turn is for work of which there is one at a time, and whose end
// somebody is told of: who has heard that may begin the next at once, however
// late the teller is done with telling. Garcon's packages and playbooks are
// such work.
package turn

import (
	"context"
	"errors"
	"sync"
	"time"
)

// endWait is how long the next one waits while the end of the last is told.
const endWait = time.Second

// A Turn is taken by one at a time, until it is closed.
type Turn struct {
	// Context is done when the turn is closed, with the cause that New was
	// given. What has the turn ends then.
	Context context.Context

	stop    context.CancelCauseFunc
	closing error
	taken   sync.WaitGroup

	mu     sync.Mutex
	busy   bool
	ending chan struct{} // not nil while an end is told
}

// New returns a free turn; closing is what those get who come too late.
func New(closing error) *Turn {
	ctx, stop := context.WithCancelCause(context.Background())
	return &Turn{Context: ctx, stop: stop, closing: closing}
}

// ErrTaken means that somebody else has the turn.
var ErrTaken = errors.New("something else goes on")

// Take takes the turn, or says why not.
func (t *Turn) Take() error {
	t.mu.Lock()
	ending := t.ending
	t.mu.Unlock()
	if ending != nil {
		late := time.NewTimer(endWait)
		defer late.Stop()
		select {
		case <-ending:
		case <-late.C:
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.Context.Err() != nil:
		return t.closing
	case t.busy:
		return ErrTaken
	}
	t.busy = true
	t.taken.Add(1)
	return nil
}

// GiveBack ends the turn, of whose end nobody has to be told.
func (t *Turn) GiveBack() { t.End(func() {}) }

// End tells of the end and gives the turn back.
func (t *Turn) End(tell func()) {
	ending := make(chan struct{})
	t.mu.Lock()
	t.ending = ending
	t.mu.Unlock()
	tell()
	t.mu.Lock()
	t.busy, t.ending = false, nil
	t.mu.Unlock()
	close(ending)
	t.taken.Done()
}

// Close keeps others from the turn, asks who has it to end, and waits for
// that.
func (t *Turn) Close() {
	t.mu.Lock()
	t.stop(t.closing)
	t.mu.Unlock()
	t.taken.Wait()
}
