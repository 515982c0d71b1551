package dbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// systemd's manager on the bus (org.freedesktop.systemd1(5)).
const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = "/org/freedesktop/systemd1"
	systemdManager = systemdName + ".Manager"

	errNoSuchUnit    = systemdName + ".NoSuchUnit"
	errNoSuchProcess = systemdName + ".NoSuchProcess"

	systemdRule = "type='signal',sender='" + systemdName + "',path='" + systemdPath +
		"',interface='" + systemdManager + "',member='JobRemoved'"
	systemdOwnerRule = nameOwnerRule + ",arg0='" + systemdName + "'"
)

// systemdTimeout bounds one answer of systemd's; jobs take what they take.
const systemdTimeout = 25 * time.Second

// A Systemd starts and stops units. It has a connection of its own, made when
// it is needed and again when it was lost.
type Systemd struct {
	// Bus is as in Options.
	Bus string

	mu   sync.Mutex
	conn *systemdConn
}

// A systemdConn is one connection and what is known over it.
type systemdConn struct {
	link *link
	read sync.WaitGroup

	mu sync.Mutex
	// owner is systemd's connection.
	owner string
	// waiters are those who wait for jobs of a unit.
	waiters map[string][]chan endedJob
	over    bool
}

// An endedJob is a job that was removed.
type endedJob struct{ path, result string }

// StartUnit starts a unit and returns when it is up.
func (s *Systemd) StartUnit(ctx context.Context, unit string) error {
	return s.job(ctx, "StartUnit", unit, "fail")
}

// StopUnit stops a unit and returns when it is down; one that systemd does not
// know is. It does not wait for its turn among units that are being stopped:
// at shutdown a VM's comes after auberge-guests.service, whose stopping waits
// for us. Systemd would have even a unit that is down wait there.
func (s *Systemd) StopUnit(ctx context.Context, unit string) error {
	return except(s.job(ctx, "StopUnit", unit, "ignore-dependencies"), errNoSuchUnit)
}

// KillUnit kills the main process of a unit, which with KillMode=mixed is the end
// of all others, but not of what systemd itself runs for it afterwards. A unit
// that has none is killed.
func (s *Systemd) KillUnit(ctx context.Context, unit string) error {
	c, err := s.connect(ctx)
	if err == nil {
		err = c.call(ctx, "KillUnit", []any{unit, "main", int32(unix.SIGKILL)})
	}
	return except(err, errNoSuchUnit, errNoSuchProcess)
}

// SetProperties sets properties of a unit until the host boots again.
func (s *Systemd) SetProperties(ctx context.Context, unit string, properties map[string]any) error {
	type property struct {
		Name  string
		Value dbus.Variant
	}
	var list []property
	for name, value := range properties {
		list = append(list, property{name, dbus.MakeVariant(value)})
	}
	slices.SortFunc(list, func(a, b property) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	return c.call(ctx, "SetUnitProperties", []any{unit, true, list})
}

// except forgives errors of some names.
func except(err error, names ...string) error {
	var e *callError
	if errors.As(err, &e) && slices.Contains(names, e.name) {
		return nil
	}
	return err
}

// job has systemd do something that takes its time, and waits for the end.
func (s *Systemd) job(ctx context.Context, method, unit, mode string) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	// From before the call: the end can come ahead of the answer.
	ended, leave := c.wait(unit)
	defer leave()
	var path dbus.ObjectPath
	if err := c.call(ctx, method, []any{unit, mode}, &path); err != nil {
		return err
	}
	for {
		select {
		case j, ok := <-ended:
			switch {
			case !ok:
				return fmt.Errorf("wait for %s of %s: %w", method, unit, errClosed)
			case j.path != string(path):
			case j.result == "done":
				return nil
			default:
				return fmt.Errorf("systemd's job %s of %s ended with %q", method, unit, j.result)
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for %s of %s: %w", method, unit, context.Cause(ctx))
		}
	}
}

// Close ends the connection. A later call makes a new one.
func (s *Systemd) Close() {
	s.mu.Lock()
	c := s.conn
	s.conn = nil
	s.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// connect returns the connection, which may have to be made.
func (s *Systemd) connect(ctx context.Context) (*systemdConn, error) {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil && !c.ended() {
		return c, nil
	}
	fresh, err := connectSystemd(ctx, s.Bus)
	if err != nil {
		return nil, fmt.Errorf("reach systemd: %w", err)
	}
	s.mu.Lock()
	if s.conn == nil || s.conn.ended() {
		c, s.conn = s.conn, fresh
	} else { // another call was faster
		c, fresh = fresh, s.conn
	}
	s.mu.Unlock()
	if c != nil {
		c.close()
	}
	return fresh, nil
}

func connectSystemd(ctx context.Context, bus string) (*systemdConn, error) {
	sock, err := dial(ctx, bus)
	if err != nil {
		return nil, err
	}
	c := &systemdConn{link: newLink(sock, systemdTimeout), waiters: map[string][]chan endedJob{}}
	c.read.Go(c.run)
	if err := c.setUp(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *systemdConn) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var me, owner string
	if err := c.link.driver(ctx, "Hello", nil, &me); err != nil {
		return err
	}
	for _, rule := range []string{systemdRule, systemdOwnerRule} {
		if err := c.link.driver(ctx, "AddMatch", []any{rule}); err != nil {
			return err
		}
	}
	if err := c.link.driver(ctx, "GetNameOwner", []any{systemdName}, &owner); err != nil {
		return err
	}
	c.moved(owner)
	// Or systemd would send no signals.
	return c.call(ctx, "Subscribe", nil)
}

// call calls a method of the manager, by its connection's name: nobody else's
// answer is taken for systemd's.
func (c *systemdConn) call(ctx context.Context, method string, args []any, results ...any) error {
	ctx, cancel := context.WithTimeout(ctx, systemdTimeout)
	defer cancel()
	b, err := plainBody(args...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	owner := c.owner
	c.mu.Unlock()
	m, err := c.link.call(ctx, &outgoing{typ: typeCall, destination: owner, path: systemdPath,
		iface: systemdManager, member: method, body: b})
	if err != nil {
		return fmt.Errorf("systemd, %s: %w", method, err)
	}
	defer m.closeFDs()
	values, err := decodeReply(m)
	if err == nil {
		err = dbus.Store(values, results...)
	}
	if err != nil {
		return fmt.Errorf("systemd, %s: %w", method, err)
	}
	return nil
}

// wait returns what ends of a unit's jobs, until leave is called. The channel
// is closed when the connection ends.
func (c *systemdConn) wait(unit string) (ended chan endedJob, leave func()) {
	// Nobody else starts or stops the unit, but an administrator.
	ended = make(chan endedJob, 16)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		close(ended)
		return ended, func() {}
	}
	c.waiters[unit] = append(c.waiters[unit], ended)
	return ended, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.waiters[unit] = slices.DeleteFunc(c.waiters[unit], func(w chan endedJob) bool { return w == ended })
		if len(c.waiters[unit]) == 0 {
			delete(c.waiters, unit)
		}
	}
}

// run reads until the connection ends.
func (c *systemdConn) run() {
	defer func() {
		c.link.close()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.over = true
		for _, list := range c.waiters {
			for _, w := range list {
				close(w)
			}
		}
		clear(c.waiters)
	}()
	c.link.read(headerSlack, c.signal)
}

func (c *systemdConn) signal(m *message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := bodyReader{order: m.order, b: m.bodyBytes()}
	switch {
	case m.sender == driverName && m.member == "NameOwnerChanged":
		// systemd has executed itself anew.
		name, _, owner := r.string(), r.string(), r.string()
		if r.end() == nil && name == systemdName && owner != "" {
			c.owner = owner
		}
	case m.sender == c.owner && m.iface == systemdManager && m.member == "JobRemoved":
		_, path, unit, result := r.uint32(), r.string(), r.string(), r.string()
		if r.end() != nil {
			return nil
		}
		for _, w := range c.waiters[unit] {
			select {
			case w <- endedJob{path, result}:
			default:
			}
		}
	}
	return nil
}

func (c *systemdConn) moved(owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = owner
}

func (c *systemdConn) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

func (c *systemdConn) close() {
	c.link.close()
	c.read.Wait()
}
