package concierge

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/auberge-vm/auberge/policy"
)

// What an operation is about.
const (
	opStart   = "start-vm"
	opStop    = "stop-vm"
	opSuspend = "suspend-vm"
	opResume  = "resume-vm"
	opResize  = "resize-disk"
)

// An opStatus is how an operation stands.
type opStatus string

const (
	opRunning   opStatus = "running"
	opDone      opStatus = "done"
	opFailed    opStatus = "failed"
	opCancelled opStatus = "cancelled"
)

const (
	// keepOperations and keepPerUser bound what is remembered of operations
	// that have ended, so that a client that lost its connection can still
	// learn how they did.
	keepOperations = 10 * time.Minute
	keepPerUser    = 32
	// progressPause is the least time between two reports of an operation.
	progressPause = time.Second
)

// An operation is work that takes long enough to be looked at. The service's
// lock guards all but what never changes.
type operation struct {
	id      string
	kind    string
	owner   policy.Owner
	name    string // the VM's
	started time.Time
	cancel  func() // for CancelDiskImageOperation; nil where that cannot

	status   opStatus
	phase    string
	progress uint32 // percent
	reason   string
	ended    time.Time
	reported time.Time
}

// describe is an operation in plain values.
func (o *operation) describe() map[string]any {
	d := map[string]any{
		"id": o.id, "kind": o.kind, "name": o.name, "owner_id": o.owner.Word, "uid": o.owner.UID,
		"status": string(o.status), "progress": o.progress, "started": uint64(o.started.UnixMicro()),
		"cancellable": o.cancel != nil && o.status == opRunning,
	}
	if o.phase != "" {
		d["phase"] = o.phase
	}
	if o.reason != "" {
		d["reason"] = o.reason
	}
	if !o.ended.IsZero() {
		d["ended"] = uint64(o.ended.UnixMicro())
	}
	return d
}

// operations are those that run, and the last ones that have ended.
type operations map[string]*operation

// prune forgets what has ended long ago, or too many others after it.
func (os operations) prune(now time.Time) {
	ended := map[uint32][]*operation{}
	for id, o := range os {
		switch {
		case o.status == opRunning:
		case now.Sub(o.ended) > keepOperations:
			delete(os, id)
		default:
			ended[o.owner.UID] = append(ended[o.owner.UID], o)
		}
	}
	for _, list := range ended {
		if len(list) <= keepPerUser {
			continue
		}
		slices.SortFunc(list, func(a, b *operation) int { return b.ended.Compare(a.ended) })
		for _, o := range list[keepPerUser:] {
			delete(os, o.id)
		}
	}
}

func (os operations) list(see func(uid uint32) bool, now time.Time) []map[string]any {
	os.prune(now)
	var all []*operation
	for _, o := range os {
		if see(o.owner.UID) {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *operation) int {
		return cmp.Or(a.started.Compare(b.started), cmp.Compare(a.id, b.id))
	})
	var out []map[string]any
	for _, o := range all {
		out = append(out, o.describe())
	}
	return out
}

// ListOperations returns the caller's operations, the oldest first.
func (s *Service) ListOperations(_ context.Context, sub policy.Subject) ([]map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.operations.list(func(uid uint32) bool { return maySee(sub, uid) }, time.Now()), nil
}

// beginOperation makes an operation that runs.
func (s *Service) beginOperation(kind string, owner policy.Owner, name string, cancel func()) *operation {
	now := time.Now()
	o := &operation{id: uuid.NewString(), kind: kind, owner: owner, name: name,
		started: now, reported: now, cancel: cancel, status: opRunning}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.operations.prune(now)
	s.operations[o.id] = o
	s.journal.note(owner.UID, operationChanged, o.describe())
	return o
}

// progress says how far an operation is. A new phase is told at once, a mere
// number not more than once a second; it says whether it was told.
func (s *Service) progress(o *operation, phase string, percent uint32) (told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if o.status != opRunning {
		return false
	}
	told = phase != o.phase || percent != o.progress && now.Sub(o.reported) >= progressPause
	o.phase, o.progress = phase, percent
	if told {
		o.reported = now
		s.journal.note(o.owner.UID, operationChanged, o.describe())
	}
	return told
}

// endOperation says how an operation ended.
func (s *Service) endOperation(o *operation, status opStatus, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.status, o.reason, o.phase, o.ended = status, reason, "", time.Now()
	if status == opDone {
		o.progress = 100
	}
	s.journal.note(o.owner.UID, operationChanged, o.describe())
	s.operations.prune(o.ended)
	if s.cfg.Observer != nil {
		s.cfg.Observer.OperationEnded(o.kind, string(status), o.ended.Sub(o.started))
	}
}

// finish ends an operation by its error.
func (s *Service) finish(o *operation, err error) {
	switch {
	case err == nil:
		s.endOperation(o, opDone, "")
	case errors.Is(err, errStopped), errors.Is(err, errCancelled):
		s.endOperation(o, opCancelled, err.Error())
	default:
		s.endOperation(o, opFailed, err.Error())
	}
}
