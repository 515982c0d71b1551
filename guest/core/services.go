package core

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A service that ends more than respawnMax times within respawnWindow is
// stopped, as on ChromeOS.
const (
	respawnMax    = 10
	respawnWindow = 30 * time.Second
)

// A Supervisor keeps services running: what ends is started again at once,
// until it ends too often.
type Supervisor struct {
	table *Table
	log   *slog.Logger
	now   func() time.Time

	ctx     context.Context // done when services are no longer restarted
	cancel  context.CancelFunc
	mu      sync.Mutex // orders Start before or after Stop, and guards current
	current map[string]*Process
	running sync.WaitGroup
}

// NewSupervisor returns a supervisor of services started through t.
func NewSupervisor(t *Table, log *slog.Logger) *Supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	return &Supervisor{table: t, log: log, now: time.Now, ctx: ctx, cancel: cancel, current: map[string]*Process{}}
}

// Start runs a service and keeps it running. An error says that it could not
// be started at all, and it is not tried again.
func (s *Supervisor) Start(name string, c Command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return ErrTableClosed
	}
	p, err := s.table.Start(c)
	if err != nil {
		return err
	}
	s.current[name] = p
	s.log.Info("service started", "service", name, "pid", p.Pid)
	s.running.Go(func() { s.keep(name, c, p) })
	return nil
}

// keep waits for p and its successors.
func (s *Supervisor) keep(name string, c Command, p *Process) {
	limit := respawnLimit{max: respawnMax, window: respawnWindow}
	for {
		// Waiting stops with the supervisor; the table goes on to reap.
		exit, err := p.Wait(s.ctx)
		if err != nil {
			return
		}
		if !limit.allow(s.now()) {
			s.log.Error("service stopped: it ended too often", "service", name,
				"respawns", respawnMax, "within", respawnWindow, "last", exit.String())
			return
		}
		s.log.Warn("service ended, starting it again", "service", name, "end", exit.String())
		if p, err = s.table.Start(c); err != nil {
			s.log.Error("service stopped: it cannot be started again", "service", name, "err", err)
			return
		}
		s.mu.Lock()
		s.current[name] = p
		s.mu.Unlock()
	}
}

// Stop ends the supervision, and returns when nothing will be started again.
// The services themselves keep running.
func (s *Supervisor) Stop() {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
}

// End sends a signal to a service and waits until it has ended or the grace is
// over. It is for after Stop, or the service is started again.
func (s *Supervisor) End(name string, sig unix.Signal, grace time.Duration) {
	s.mu.Lock()
	p := s.current[name]
	s.mu.Unlock()
	if p == nil {
		return
	}
	p.Signal(sig)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if exit, err := p.Wait(ctx); err != nil {
		s.log.Info("service still running", "service", name, "signal", unix.SignalName(sig), "after", grace)
	} else {
		s.log.Info("service ended", "service", name, "end", exit.String())
	}
}

// A respawnLimit allows so many respawns in any window of time.
type respawnLimit struct {
	max    int
	window time.Duration
	past   []time.Time
}

func (l *respawnLimit) allow(now time.Time) bool {
	for len(l.past) > 0 && now.Sub(l.past[0]) >= l.window {
		l.past = l.past[1:]
	}
	if len(l.past) >= l.max {
		return false
	}
	l.past = append(l.past, now)
	return true
}
