package dbus

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// handle does what an event asks for. It is called by one goroutine.
func (s *logindSession) handle(ctx context.Context, e logindEvent) {
	if ctx.Err() != nil {
		return // chosen by chance over the end
	}
	if e.on {
		s.mu.Lock()
		s.ahead--
		s.mu.Unlock()
	}
	switch e.member {
	case "NameOwnerChanged":
		s.unlockAll()
		s.peer = e.owner
		if e.owner == "" {
			s.missing(ctx)
			return
		}
		s.absent = false
		s.lock(ctx, "sleep", "VMs are suspended")
		s.lock(ctx, "shutdown", "VMs are stopped")
		s.sleep(ctx, s.flag(ctx, "PreparingForSleep"))
		s.shutdown(ctx, s.flag(ctx, "PreparingForShutdown"))
	case "PrepareForSleep":
		s.sleep(ctx, e.on)
	case "PrepareForShutdown":
		s.shutdown(ctx, e.on)
	case "UserRemoved":
		s.events.UserRemoved(e.uid)
	}
}

// missing is for a bus without login manager. It says nothing of a shutdown:
// the login manager goes before the machine does.
func (s *logindSession) missing(ctx context.Context) {
	if !s.absent {
		s.log.Info("there is no login manager on the bus: nothing tells when the host sleeps, shuts down, or a user logs out")
		s.absent = true
	}
	s.awake(ctx)
}

func (s *logindSession) sleep(ctx context.Context, about bool) {
	if !about {
		s.lock(ctx, "sleep", "VMs are suspended") // before it sleeps again
		s.awake(ctx)
		return
	}
	ctx, cancel := s.delay(ctx)
	defer cancel()
	s.events.PrepareForSleep(ctx, true)
	s.unlock("sleep")
}

// awake lets the VMs go on, for as long as the machine is not to sleep again.
func (s *logindSession) awake(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	s.mu.Lock()
	s.rest = cancel
	if s.ahead > 0 { // it is to sleep again, or shut down, by now
		cancel()
	}
	s.mu.Unlock()
	s.events.PrepareForSleep(ctx, false)
	s.mu.Lock()
	s.rest = nil
	s.mu.Unlock()
}

func (s *logindSession) shutdown(ctx context.Context, about bool) {
	if !about {
		s.lock(ctx, "shutdown", "VMs are stopped")
		s.events.PrepareForShutdown(ctx, false)
		return
	}
	ctx, cancel := s.delay(ctx)
	defer cancel()
	s.events.PrepareForShutdown(ctx, true)
	s.unlock("shutdown")
}

// delay bounds a context by the time that the login manager waits for us, less
// what it takes to tell it.
func (s *logindSession) delay(ctx context.Context) (context.Context, context.CancelFunc) {
	d := defaultDelay
	var us uint64
	if err := s.property(ctx, "InhibitDelayMaxUSec", &us); err != nil {
		s.log.Warn("ask how long the host waits for its VMs", "err", err)
	} else if us < uint64(time.Hour/time.Microsecond) {
		d = time.Duration(us) * time.Microsecond
	}
	return context.WithTimeout(ctx, d-min(d/10, 500*time.Millisecond))
}

// lock has the login manager wait before it does something.
func (s *logindSession) lock(ctx context.Context, what, why string) {
	if s.locks[what] != nil || s.peer == "" {
		return
	}
	level := slog.LevelWarn
	if _, repeated := s.wanted[what]; repeated {
		level = slog.LevelDebug
	}
	s.wanted[what] = why
	f, err := s.inhibit(ctx, what, why)
	if err != nil {
		s.log.Log(ctx, level, "the host will not wait for its VMs; asking again", "before", what, "err", err)
		return
	}
	s.locks[what] = f
}

// lockAgain asks for what was refused before.
func (s *logindSession) lockAgain(ctx context.Context) {
	for what, why := range s.wanted {
		s.lock(ctx, what, why)
	}
}

func (s *logindSession) unlock(what string) {
	delete(s.wanted, what)
	if f := s.locks[what]; f != nil {
		f.Close()
		delete(s.locks, what)
	}
}

func (s *logindSession) unlockAll() {
	clear(s.wanted)
	for what := range s.locks {
		s.unlock(what)
	}
}

func (s *logindSession) inhibit(ctx context.Context, what, why string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	m, err := s.ask(ctx, logindIface, "Inhibit", what, "Auberge", why, "delay")
	if err != nil {
		return nil, err
	}
	defer m.closeFDs()
	if _, err := decodeReply(m); err != nil {
		return nil, err
	}
	if len(m.fds) != 1 {
		return nil, fmt.Errorf("%w: the answer has %d descriptors", errMalformed, len(m.fds))
	}
	f := os.NewFile(uintptr(m.fds[0]), "inhibitor of "+what)
	m.fds = nil
	return f, nil
}

// flag is a boolean property; what cannot be learnt is not set.
func (s *logindSession) flag(ctx context.Context, name string) (on bool) {
	if err := s.property(ctx, name, &on); err != nil {
		s.log.Warn("ask the login manager", "property", name, "err", err)
	}
	return on
}

func (s *logindSession) property(ctx context.Context, name string, value any) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	m, err := s.ask(ctx, propsIface, "Get", logindIface, name)
	if err != nil {
		return err
	}
	defer m.closeFDs()
	values, err := decodeReply(m)
	if err != nil {
		return err
	}
	var v dbus.Variant
	if err := dbus.Store(values, &v); err != nil {
		return err
	}
	return v.Store(value)
}

// ask calls a method of the login manager.
func (s *logindSession) ask(ctx context.Context, iface, member string, args ...any) (*message, error) {
	b, err := plainBody(args...)
	if err != nil {
		return nil, err
	}
	return s.link.call(ctx, &outgoing{typ: typeCall, path: logindPath, iface: iface, member: member, destination: s.peer, body: b})
}
