package dbus

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/auberge-vm/auberge/policy"
)

// nameOwnerRule asks the bus to tell of connections that come and go.
const nameOwnerRule = "type='signal',sender='" + driverName + "',interface='" + driverName + "',member='NameOwnerChanged'"

// RequestName (D-Bus specification, "Message Bus Messages").
const (
	nameDoNotQueue   = 0x4
	namePrimaryOwner = 1
	nameAlreadyOwner = 4
)

// A session is a server's time on one bus: a link and what was learned over it.
type session struct {
	server *Server
	link   *link
	peers  *registry
	polkit *polkit // nil when it is not asked
	// ctx ends with the link and with the server.
	ctx  context.Context
	lost chan error

	mu sync.Mutex
	// carriers are the calls that were lately answered with descriptors, by
	// the serial of the answer.
	carriers map[uint32]*message
	order    []uint32
}

// newSession starts to read from an authenticated connection. end closes it
// and waits for everything that the session started, except calls in progress.
func newSession(ctx context.Context, s *Server, sock *net.UnixConn) (sess *session, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	l := newLink(sock, s.opts.Limits.Write)
	sess = &session{
		server: s, link: l, peers: newRegistry(l.credentials), ctx: ctx,
		lost: make(chan error, 1), carriers: map[uint32]*message{},
	}
	if s.opts.Polkit {
		sess.polkit = newPolkit(sess)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		err := sess.read()
		l.close() // calls that wait for the bus must not wait longer
		cancel(err)
	})
	return sess, func() {
		s.current.CompareAndSwap(sess, nil)
		cancel(errClosed)
		l.close()
		reading.Wait()
		sess.peers.close()
	}
}

// setUp says Hello, learns who is there, and takes the names.
func (s *session) setUp() error {
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	defer cancel()
	var me string
	if err := s.link.driver(ctx, "Hello", nil, &me); err != nil {
		return err
	}
	if err := s.link.driver(ctx, "AddMatch", []any{nameOwnerRule}); err != nil {
		return err
	}
	if s.polkit != nil {
		if err := s.link.driver(ctx, "AddMatch", []any{polkitRule}); err != nil {
			return err
		}
	}
	// Everybody is known, or being asked about, before the first call can
	// arrive and the first signal be sent.
	if s.eager() {
		var names []string
		if err := s.link.driver(ctx, "ListNames", nil, &names); err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, ":") && name != me {
				s.peers.meet(s.ctx, name)
			}
		}
	}
	s.server.current.Store(s)
	for _, name := range s.server.names {
		if err := s.own(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// eager says whether to learn about connections before they call us, which
// only the audience of signals needs.
func (s *session) eager() bool { return !s.server.opts.BroadcastSignals }

func (s *session) own(ctx context.Context, name string) error {
	var result uint32
	if err := s.link.driver(ctx, "RequestName", []any{name, uint32(nameDoNotQueue)}, &result); err != nil {
		return fmt.Errorf("can't own %s: %w", name, err)
	}
	if result == namePrimaryOwner || result == nameAlreadyOwner {
		return nil
	}
	var owner string
	if err := s.link.driver(ctx, "GetNameOwner", []any{name}, &owner); err != nil {
		owner = "a connection that has just left"
	} else if c, err := s.link.credentials(ctx, owner); err == nil {
		owner = fmt.Sprintf("%s (uid %d)", owner, c.UID)
	}
	return fmt.Errorf("%w: %s belongs to %s", ErrNameTaken, name, owner)
}

// read takes messages off the link until it ends. It never waits for anything
// but the bus: handlers and questions to the bus run elsewhere.
func (s *session) read() error {
	r := newReader(s.link.sock, s.server.opts.Limits.Payload+headerSlack)
	for {
		m, err := r.next()
		if err != nil {
			return fmt.Errorf("can't read from the bus: %w", err)
		}
		switch m.typ {
		case typeCall:
			s.dispatch(m)
		case typeReturn, typeError:
			if m.err != nil || !s.link.answer(m) {
				s.undelivered(m)
				m.closeFDs()
			}
		case typeSignal:
			s.busSignal(m)
			m.closeFDs()
		default:
			m.closeFDs()
		}
	}
}

// busSignal follows who is on the bus. Signals that others send us unasked are
// of no interest.
func (s *session) busSignal(m *message) {
	if s.polkit != nil && m.iface == polkitInterface && s.polkit.is(m.sender) {
		s.polkit.changed()
		return
	}
	if m.err != nil || m.raw == nil || m.sender != driverName || m.iface != driverName {
		return
	}
	r := bodyReader{order: m.order, b: m.bodyBytes()}
	switch m.member {
	case "NameOwnerChanged":
		name, before, owner := r.string(), r.string(), r.string()
		switch {
		case r.end() == nil && name == polkitName && s.polkit != nil:
			s.polkit.moved(before, owner)
			s.polkit.changed()
		case r.end() == nil && name == VMApplicationsName && owner != "":
			s.desktopAppeared(owner)
		case r.end() != nil || !strings.HasPrefix(name, ":"):
		case owner == "":
			s.peers.forget(name)
		case s.eager():
			s.peers.meet(s.ctx, name)
		}
	case "NameLost":
		if name := r.string(); r.end() == nil && !strings.HasPrefix(name, ":") {
			select {
			case s.lost <- fmt.Errorf("the bus took the name %s away", name):
			default:
			}
		}
	}
}

// caller says who sent m. Not knowing it is being denied.
func (s *session) caller(ctx context.Context, m *message) (*peer, error) {
	p := s.peers.meet(s.ctx, m.sender)
	if _, err := p.identity(ctx); err != nil {
		return nil, fmt.Errorf("%w: can't tell who is calling: %w", policy.ErrDenied, err)
	}
	return p, nil
}
