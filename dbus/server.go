package dbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/auberge-vm/auberge/policy"
)

// Options say how a Server is run.
type Options struct {
	// Bus is "system", "session" or a D-Bus server address.
	Bus string
	// Log may be nil.
	Log *slog.Logger
	// BroadcastSignals sends signals to every connection that asks for them,
	// as on a session bus, instead of to those that may see them.
	BroadcastSignals bool
	// DaemonUIDs are the users of Auberge's own daemons: they get all signals
	// and have policy.RightDaemon.
	DaemonUIDs []uint32
	// Polkit has polkit asked who may use VMs and who may manage other
	// people's. Without it every user may have VMs and uid 0 alone is an
	// administrator.
	Polkit bool
	// UserExists is policy.UserExists unless set. Only administrators have it
	// asked.
	UserExists policy.UserLookup
	Limits     Limits
	// DesktopAppeared, which may be nil, is called when a user's program has
	// taken the name that a [Desktop] is about. Of those that wait for it
	// nothing is announced. It may take its time.
	DesktopAppeared func(ctx context.Context, uid uint32)
	// Observer may be nil.
	Observer Observer
}

// ErrNameTaken means that somebody else owns the service's name on the bus.
var ErrNameTaken = errors.New("the name on the bus is taken")

const (
	minRedial = 50 * time.Millisecond
	maxRedial = 2 * time.Second
)

// A Server offers services on a bus.
type Server struct {
	opts    Options
	log     *slog.Logger
	program string // for messages to people
	names   []string
	objects map[string]*object
	signals map[string]exportedSignal
	gate    *gate
	drain   func()

	calls   context.Context // of calls in progress; Run's
	running atomic.Bool
	current atomic.Pointer[session]
}

// New makes a server of the given tables. It fails on a table with a mistake:
// a method without a handler, without a right, or one about somebody's VMs
// whose request names no owner.
func New(services []Service, own []OwnInterface, opts Options) (*Server, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.UserExists == nil {
		opts.UserExists = policy.UserExists
	}
	opts.Limits = opts.Limits.withDefaults()
	s := &Server{
		opts: opts, log: opts.Log, gate: newGate(opts.Limits),
		objects: map[string]*object{}, signals: map[string]exportedSignal{},
	}
	s.drain = sync.OnceFunc(s.drainCalls)
	for _, service := range services {
		s.program = cmp.Or(s.program, service.Program)
		if err := s.exportService(service); err != nil {
			return nil, fmt.Errorf("can't export %s: %w", service.Interface, err)
		}
	}
	for _, o := range own {
		if err := s.exportOwn(o); err != nil {
			return nil, fmt.Errorf("can't export %s: %w", o.Name, err)
		}
	}
	return s, s.exportStandard()
}

// Run connects to the bus, takes the services' names and serves until ctx
// ends; onReady, which may be nil, is called when the names are owned for the
// first time. It fails when that can't be reached. After that a bus that goes
// away is dialled again for as long as it takes: calls in progress go on, their
// replies are dropped, and everybody's identity is forgotten.
//
// The end of ctx ends the contexts of calls in progress; Run returns when
// their replies are sent. A Server is run once.
func (s *Server) Run(ctx context.Context, onReady func()) error {
	if s.running.Swap(true) {
		return errors.New("the server was run before")
	}
	s.calls = ctx
	defer s.drain()
	ready, logged := false, ""
	delay := minRedial
	for {
		err := s.serve(ctx, func() {
			delay, logged = minRedial, ""
			if !ready && onReady != nil {
				onReady()
			}
			ready = true
		})
		if ctx.Err() != nil {
			return nil
		}
		if !ready {
			return err
		}
		if err.Error() != logged { // a bus that stays away is one event
			logged = err.Error()
			s.log.Warn("not on the bus, will connect again and again", "err", err)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
		delay = min(2*delay, maxRedial)
	}
}

// serve runs one session on the bus from its beginning to its end.
func (s *Server) serve(ctx context.Context, onReady func()) error {
	sock, err := dial(ctx, s.opts.Bus)
	if err != nil {
		return err
	}
	sess, end := newSession(ctx, s, sock)
	defer end()
	if err := sess.setUp(); err != nil {
		return err
	}
	onReady()
	select {
	case <-sess.ctx.Done():
		if ctx.Err() == nil {
			return context.Cause(sess.ctx)
		}
	case err := <-sess.lost:
		return err
	}
	s.drain() // while replies can still be sent
	return nil
}

func (s *Server) drainCalls() {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Limits.Drain)
	defer cancel()
	if err := s.gate.drain(ctx); err != nil {
		s.log.Error("calls in progress ignore the shutdown", "err", err)
	}
}
