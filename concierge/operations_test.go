package concierge

import (
	"errors"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/policy"
)

func ownerOf(uid uint32) policy.Owner { return policy.Owner{UID: uid, Word: "word"} }

// Operations that run are kept, ended ones for a while and not too many of a
// user's.
func TestOperationsAreForgotten(t *testing.T) {
	s := newBed(t).serve()
	running := s.beginOperation(opStart, ownerOf(1), "running", nil)
	var ended []*operation
	for range keepPerUser + 5 {
		o := s.beginOperation(opStop, ownerOf(1), "ended", nil)
		s.finish(o, nil)
		ended = append(ended, o)
	}
	other := s.beginOperation(opStop, ownerOf(2), "another's", nil)
	s.finish(other, errors.New("no"))

	list, err := s.ListOperations(t.Context(), subject(1))
	if err != nil || len(list) != keepPerUser+1 {
		t.Fatalf("%d operations, %v", len(list), err)
	}
	if list[0]["id"] != running.id || list[0]["status"] != "running" || list[len(list)-1]["id"] != ended[len(ended)-1].id {
		t.Errorf("the first is %v, the last %v", list[0], list[len(list)-1])
	}
	list, _ = s.ListOperations(t.Context(), subject(2))
	if len(list) != 1 || list[0]["status"] != "failed" || list[0]["reason"] != "no" {
		t.Errorf("another user's: %v", list)
	}
	if list, _ := s.ListOperations(t.Context(), everyone); len(list) != keepPerUser+2 {
		t.Errorf("for everybody there are %d", len(list))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.operations.prune(time.Now().Add(2 * keepOperations))
	if len(s.operations) != 1 || s.operations[running.id] == nil {
		t.Errorf("after a while: %v", s.operations)
	}
}

// Changes are numbered in the order in which they are told, and a mere number
// is not told again and again.
func TestProgressIsToldInOrder(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	o := s.beginOperation(opResize, ownerOf(1), "x", func() {})
	for i := range uint32(50) {
		s.progress(o, "moving", i)
	}
	s.progress(o, "resizing", 50)
	s.finish(o, errStopped)
	if s.progress(o, "afterwards", 60) {
		t.Error("an operation that has ended goes on")
	}
	s.Close() // all is told by then
	var last uint64
	var phases []any
	for _, c := range b.events.changes {
		if c.sequence <= last {
			t.Errorf("number %d after %d", c.sequence, last)
		}
		last = c.sequence
		phases = append(phases, c.what["phase"])
	}
	if len(phases) != 4 || phases[1] != "moving" || phases[2] != "resizing" {
		t.Errorf("told: %v", phases)
	}
	end := b.events.changes[len(b.events.changes)-1].what
	if end["status"] != "cancelled" || end["cancellable"] != false {
		t.Errorf("at the end: %v", end)
	}
}
