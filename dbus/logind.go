package dbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// systemd's login manager (org.freedesktop.login1(5)).
const (
	logindName  = "org.freedesktop.login1"
	logindPath  = "/org/freedesktop/login1"
	logindIface = logindName + ".Manager"
	propsIface  = "org.freedesktop.DBus.Properties"
)

const (
	// logindMessage is the longest message that is read: those of a login
	// manager to us are short, and others can send us what they like.
	logindMessage = 64 << 10
	// logindQueue is how many of its signals may wait for us.
	logindQueue = 256
	// wakeTimeout bounds what a host that is awake again waits for.
	wakeTimeout = 2 * time.Minute
	// lockTimeout bounds asking for an inhibitor: polkit may have to be started
	// for it, on a host that is just booting.
	lockTimeout = 30 * time.Second
	// lockAgain is how often one that was refused is asked for again.
	lockAgain = 20 * time.Second
	// defaultDelay is how long logind waits unless configured otherwise.
	defaultDelay = 5 * time.Second
)

// HostEvents are told what becomes of the machine and its users. Calls come
// one at a time.
type HostEvents interface {
	// PrepareForSleep with about set returns when the machine may sleep; it
	// sleeps when ctx is done in any case. Without about the machine is awake:
	// that is said at the beginning and after each sleep, even one that did not
	// come to be, and may be said more than once.
	PrepareForSleep(ctx context.Context, about bool)
	// PrepareForShutdown is the same for shutting down, which can be called
	// off.
	PrepareForShutdown(ctx context.Context, about bool)
	// UserRemoved: a user's last session has ended, and nothing of the user's
	// is to linger.
	UserRemoved(uid uint32)
}

// A Logind listens to the login manager of a bus, and has it wait before the
// machine sleeps or shuts down.
type Logind struct {
	bus    string
	log    *slog.Logger
	events HostEvents
	absent bool // and that was logged
}

// NewLogind makes one for the bus at an address such as Options.Bus.
func NewLogind(bus string, log *slog.Logger, events HostEvents) *Logind {
	return &Logind{bus: bus, log: log, events: events}
}

// Run listens until ctx is done. A bus that goes away is dialled again, and a
// login manager that is not there, or comes and goes, is waited for.
func (l *Logind) Run(ctx context.Context) {
	delay, logged := minRedial, ""
	for {
		began := time.Now()
		err := l.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxRedial {
			delay, logged = minRedial, ""
		}
		if err.Error() != logged {
			logged = err.Error()
			l.log.Debug("not in touch with the login manager, will try again and again", "err", err)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		delay = min(2*delay, maxRedial)
	}
}

// serve runs one connection to the bus from its beginning to its end.
func (l *Logind) serve(ctx context.Context) error {
	sock, err := dial(ctx, l.bus)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &logindSession{Logind: l, link: newLink(sock, dialTimeout), queue: make(chan logindEvent, logindQueue), locks: map[string]*os.File{}, wanted: map[string]string{}}
	var reading sync.WaitGroup
	reading.Go(func() {
		err := s.link.read(logindMessage, s.signal)
		s.link.close()
		cancel(err)
	})
	defer reading.Wait()
	defer s.link.close()
	defer cancel(errClosed)
	defer s.unlockAll()
	owner, err := s.setUp(ctx)
	if err != nil {
		return err
	}
	s.handle(ctx, logindEvent{member: "NameOwnerChanged", owner: owner})
	again := time.NewTicker(lockAgain)
	defer again.Stop()
	for {
		select {
		case e := <-s.queue:
			s.handle(ctx, e)
		case <-again.C:
			s.lockAgain(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A logindEvent is a signal of the login manager, or one of the bus about it.
type logindEvent struct {
	member string
	on     bool   // of PrepareFor...
	uid    uint32 // of UserRemoved
	owner  string // of NameOwnerChanged
}

// A logindSession is a connection to a bus that may have a login manager.
type logindSession struct {
	*Logind
	link  *link
	queue chan logindEvent
	// locks are the descriptors by which the login manager knows that we want
	// it to wait, by what it shall not do at once.
	locks map[string]*os.File
	// wanted are those that there should be, with the reason.
	wanted map[string]string
	peer   string // the login manager, of which handle knows; empty without

	mu sync.Mutex
	// owner is the unique name whose signals count; changed says that the bus
	// has told of one.
	owner   string
	changed bool
	// rest ends what is done for a machine that is awake, when it is to sleep.
	rest context.CancelFunc
	// ahead counts the signals in the queue for which a machine must not wait.
	ahead int
}

// setUp asks to be told, and then who the login manager is.
func (s *logindSession) setUp(ctx context.Context) (owner string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var me string
	if err := s.link.driver(ctx, "Hello", nil, &me); err != nil {
		return "", err
	}
	rules := []string{nameOwnerRule + ",arg0='" + logindName + "'"}
	for _, member := range []string{"PrepareForSleep", "PrepareForShutdown", "UserRemoved"} {
		rules = append(rules, "type='signal',sender='"+logindName+"',path='"+logindPath+"',interface='"+logindIface+"',member='"+member+"'")
	}
	for _, rule := range rules {
		if err := s.link.driver(ctx, "AddMatch", []any{rule}); err != nil {
			return "", err
		}
	}
	err = s.link.driver(ctx, "GetNameOwner", []any{logindName}, &owner)
	var answer *callError
	if err != nil && !errors.As(err, &answer) {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changed { // or it is another one by now
		s.owner = owner
	}
	return s.owner, nil
}

// signal queues a signal of the login manager's. Anybody can send us one that
// looks alike.
func (s *logindSession) signal(m *message) error {
	s.mu.Lock()
	from := s.owner
	s.mu.Unlock()
	r := bodyReader{order: m.order, b: m.bodyBytes()}
	e := logindEvent{member: m.member}
	switch {
	case m.sender == driverName && m.iface == driverName && m.member == "NameOwnerChanged":
		name, _, owner := r.string(), r.string(), r.string()
		if name != logindName {
			return nil
		}
		e.owner = owner
		s.mu.Lock()
		s.owner, s.changed = owner, true
		s.mu.Unlock()
	case from == "" || m.sender != from || m.iface != logindIface:
		return nil
	case m.member == "PrepareForSleep" || m.member == "PrepareForShutdown":
		e.on = r.uint32() == 1
	case m.member == "UserRemoved":
		e.uid = r.uint32()
		r.string()
	default:
		return nil
	}
	if err := r.end(); err != nil {
		return nil // not what it says
	}
	if e.on {
		s.interrupt()
	}
	select {
	case s.queue <- e:
		return nil
	default:
		// A new connection asks how things are.
		return fmt.Errorf("%d signals of the login manager wait", logindQueue)
	}
}

// interrupt ends what is done for a machine that is awake, or would be done
// before the signal that comes next is handled.
func (s *logindSession) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead++
	if s.rest != nil {
		s.rest()
	}
}
