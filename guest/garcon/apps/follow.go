package apps

import (
	"context"
	"errors"
	"time"
)

const (
	// lookAgain is how often directories that cannot be watched are read.
	lookAgain = time.Minute
	// askAgain is when packages are asked for again that could not be found
	// out.
	askAgain = 5 * time.Minute
	// The host is told again what it did not take, ever less often.
	retryMin = 5 * time.Second
	retryMax = 5 * time.Minute
)

// A plan is what the next update is for, and when it comes.
type plan struct {
	change
	forced bool // also what the host has been told already
	list   bool // the host hears that a list is to come
	timer  *time.Timer
	set    bool // the timer runs
	at     time.Time
	due    bool // the time has come
}

// add puts something that changed into the plan, after a while at the latest.
func (p *plan) add(c change, after time.Duration) {
	p.list = p.list || c.apps
	p.look(c, after)
}

// look puts something into it of which nobody knows yet whether it changed.
func (p *plan) look(c change, after time.Duration) {
	p.apps, p.mime = p.apps || c.apps, p.mime || c.mime
	at := time.Now().Add(after)
	if p.due || p.set && !at.Before(p.at) {
		return
	}
	p.timer.Reset(after)
	p.set, p.at = true, at
}

// follow is the loop of Run: it judges events and starts one update at a time.
func (m *Manager) follow(ctx context.Context, w *watch, pending *pending) error {
	next := plan{timer: time.NewTimer(0)}
	<-next.timer.C
	defer next.timer.Stop()
	next.forced = true
	next.add(change{apps: true, mime: true}, 0)

	running, list := false, false
	done := make(chan result, 1)
	// Nothing of Run is left when it returns.
	defer func() {
		if running {
			<-done
		}
	}()
	retry := m.retry
	for {
		if next.due && !running && ctx.Err() == nil {
			now := next
			next.change, next.forced, next.list, next.due = change{}, false, false, false
			running, list = true, now.list
			go func() { done <- m.update(ctx, w, now.change, now.forced) }()
		}
		pending.set(count(next.list) + count(running && list))
		select {
		case <-ctx.Done():
			return nil
		case <-next.timer.C:
			next.set, next.due = false, true
		case e, ok := <-w.w.Events:
			if !ok {
				return errors.New("the watch of the applications has ended")
			}
			if c := w.changed(e); c.any() {
				next.add(c, m.coalesce)
			}
		case err := <-w.w.Errors:
			// Events were lost, or something is odd: look at everything.
			m.log.Warn("the watch of the applications missed something", "err", err)
			next.add(change{apps: true, mime: true}, m.coalesce)
		case <-m.refresh:
			next.forced = true
			next.add(change{apps: true, mime: true}, 0)
		case r := <-done:
			running = false
			if r.asked {
				next.look(change{apps: true}, askAgain)
			}
			if w.isPartial() {
				next.look(change{apps: true, mime: true}, lookAgain)
			}
			if r.err == nil || ctx.Err() != nil {
				retry = m.retry
				continue
			}
			m.log.Warn("the host did not take the applications", "err", r.err, "again", retry)
			next.add(r.left, retry)
			retry = min(2*retry, retryMax)
		}
	}
}

func count(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
