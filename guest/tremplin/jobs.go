package tremplin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// maxJobs bounds what is done in the background at once.
const maxJobs = 16

// maxReason bounds a reason given to the host.
const maxReason = 2000

// errCancelled is why a job ends that somebody does not want any more.
var errCancelled = errors.New("cancelled")

// Kinds of jobs, as sentences want them.
const (
	jobCreate = "created"
	jobDelete = "deleted"
	jobStart  = "started"
	jobStop   = "stopped"
	jobSetUp  = "set up"
	jobExport = "exported"
	jobImport = "imported"
)

// limits are how long jobs may take: far longer than they do, so that only what
// hangs is given up, and its container is free for the next try.
var limits = map[string]time.Duration{
	jobCreate: 6 * time.Hour, // by a slow network
	jobDelete: 15 * time.Minute,
	jobStart:  15 * time.Minute,
	jobStop:   15 * time.Minute,
	jobExport: 24 * time.Hour,
	jobImport: 24 * time.Hour,
}

// A job is one operation on a container.
type job struct {
	kind   string
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// jobs are the operations under way, one for each container.
type jobs struct {
	mu      sync.Mutex
	all     map[string]*job
	closed  bool
	limits  map[string]time.Duration
	ctx     context.Context
	end     context.CancelCauseFunc
	running sync.WaitGroup
}

func newJobs() *jobs {
	ctx, end := context.WithCancelCause(context.Background())
	return &jobs{all: map[string]*job{}, limits: limits, ctx: ctx, end: end}
}

// lastWords is how long a job may take from its notice of the end to the end.
const lastWords = time.Second

// take reserves a container for a job; finish frees it. It waits a moment for
// another one: the host may have heard already that it has ended.
func (j *jobs) take(name, kind string) (ctx context.Context, finish func(), err error) {
	j.mu.Lock()
	other := j.all[name]
	j.mu.Unlock()
	if other != nil {
		late := time.NewTimer(lastWords)
		defer late.Stop()
		select {
		case <-other.done:
		case <-late.C:
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch other := j.all[name]; {
	case j.closed:
		return nil, nil, errors.New("the VM is shutting down")
	case other != nil:
		return nil, nil, fmt.Errorf("the container %s is being %s; try again when that has ended", name, other.kind)
	case len(j.all) >= maxJobs:
		return nil, nil, fmt.Errorf("%d operations on containers are under way; try again when one has ended", maxJobs)
	}
	ctx, cancel := context.WithCancelCause(j.ctx)
	own := &job{kind: kind, cancel: cancel, done: make(chan struct{})}
	j.all[name] = own
	return ctx, func() {
		cancel(nil)
		j.mu.Lock()
		delete(j.all, name)
		j.mu.Unlock()
		close(own.done)
	}, nil
}

// run does a job in the background, unless the container has one.
func (j *jobs) run(name, kind string, do func(context.Context)) error {
	ctx, finish, err := j.take(name, kind)
	if err != nil {
		return err
	}
	j.running.Go(func() {
		defer finish()
		if most := j.limits[kind]; most > 0 {
			late := fmt.Errorf("the container %s was not %s within %s", name, kind, most)
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, most, late)
			defer cancel()
		}
		do(ctx)
	})
	return nil
}

// cancelled asks a container's job of this kind to end, and returns what to
// wait for, or nil when there is none.
func (j *jobs) cancelled(name, kind string) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	own := j.all[name]
	if own == nil || own.kind != kind {
		return nil
	}
	own.cancel(errCancelled)
	return own.done
}

// is tells whether a container has a job of this kind.
func (j *jobs) is(name, kind string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	own := j.all[name]
	return own != nil && own.kind == kind
}

// stop cancels all, and lets none begin. wait returns when all have ended.
func (j *jobs) stop() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.end(errCancelled)
}

func (j *jobs) wait() { j.running.Wait() }

// wasCancelled tells whether a job's context ended because nobody wants it.
func wasCancelled(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errCancelled) }

// clip makes a reason fit for the wire.
func clip(reason string) string {
	if len(reason) > maxReason {
		reason = reason[:maxReason] + "..."
	}
	return strings.ToValidUTF8(reason, "?")
}
