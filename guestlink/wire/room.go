package wire

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// large messages are those that take more memory, in bytes; the others are
	// bounded by how many calls there may be.
	large = 64 << 10
	// largeCalls is how many of them are read at a time, and worked on.
	largeCalls = 2
	// largeWaiting is how many wait for that, and largeWait how long.
	largeWaiting = 8
	largeWait    = 10 * time.Second
)

// A room is where large messages are until their calls end. Many of them at
// once could take more memory than there is, however few each may be.
type room struct {
	most   int           // of one message
	queue  chan struct{} // those that have a place are in it too
	places chan struct{}
	inside sync.Map // messages that have a place
}

func newRoom(most int) *room {
	return &room{most: most, queue: make(chan struct{}, largeCalls+largeWaiting), places: make(chan struct{}, largeCalls)}
}

var errFull = errors.New("too many large messages at once")

// enter gives a message a place until leave; there is none for what takes too
// much memory.
func (r *room) enter(m any, memory int) error {
	switch {
	case r == nil || memory <= large:
		return nil
	case r.most > 0 && memory > r.most:
		return fmt.Errorf("a message that would take some %d MiB of memory, more than %d", memory>>20, r.most>>20)
	}
	select {
	case r.queue <- struct{}{}:
	default:
		return errFull
	}
	t := time.NewTimer(largeWait)
	defer t.Stop()
	select {
	case r.places <- struct{}{}:
		r.inside.Store(m, true)
		return nil
	case <-t.C:
		<-r.queue
		return errFull
	}
}

// leave gives the place of a message back, if it has one.
func (r *room) leave(m any) {
	if r == nil {
		return
	}
	if _, inside := r.inside.LoadAndDelete(m); inside {
		<-r.places
		<-r.queue
	}
}
