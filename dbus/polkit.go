package dbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/policy"
)

// polkit on the bus (org.freedesktop.PolicyKit1.Authority(3)).
const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = "/org/freedesktop/PolicyKit1/Authority"
	polkitInterface = "org.freedesktop.PolicyKit1.Authority"

	// polkitRule covers Changed and, in newer versions, SessionsChanged: rules
	// or seats are not what they were.
	polkitRule = "type='signal',sender='" + polkitName + "',path='" + polkitPath + "',interface='" + polkitInterface + "'"

	polkitInteraction = 0x1 // CheckAuthorizationFlags
)

const (
	// A question is answered at once, but polkit may have to be started; one
	// with a dialog takes as long as somebody needs to find a password.
	polkitTimeout = 30 * time.Second
	dialogTimeout = 5 * time.Minute
	// maxQuestions and maxDialogs bound what is open at a time. The bus allows
	// a connection 128 open calls; what is over that it answers with errors.
	maxQuestions = 64
	// maxUserQuestions keeps a user who asks for much from having polkit, which
	// answers one after the other, busy with nobody else's.
	maxUserQuestions  = 4
	maxDialogs        = 32
	maxDialogsPerUser = 4
)

var (
	errPolkitSlow = errors.New("it took too long")
	errDialogs    = newError(errLimitsExceeded, "too many calls wait for somebody to type a password")
)

// polkit asks the authority about callers, over the session's own link. The
// subject of a question is the caller's name on the bus, which nobody else can
// ever have: a process id could be another program's by the time that polkit
// looks (CVE-2013-4288, CVE-2021-3560 were of that kind).
type polkit struct {
	session   *session
	questions *turns
	// epoch counts polkit's announcements that answers may be other ones now.
	epoch atomic.Uint64
	// ids tell dialogs apart, so that one can be cancelled.
	ids atomic.Uint64

	mu      sync.Mutex
	owner   string // polkit's connection, empty when it is not known
	dialogs map[uint32]int
	open    int
}

func newPolkit(s *session) *polkit {
	return &polkit{session: s, questions: newTurns(maxQuestions, maxUserQuestions, 0), dialogs: map[uint32]int{}}
}

// A verdict is polkit's answer.
type verdict struct {
	yes bool
	// challenge says that it would be yes after a password.
	challenge bool
}

// refusal is the error of a caller whom a program does not let in, nil for one
// whom it does.
func (v verdict) refusal(err error, program, action, rule string) error {
	switch {
	case errors.Is(err, errDialogs):
		return err
	case err != nil: // its name on the bus is not the caller's business
		return fmt.Errorf("%w: polkit could not be asked for %s: %v (is polkitd running, and are Auberge's actions in /usr/share/polkit-1/actions? Without polkit, the administrator may run %s with --polkit off)", policy.ErrDenied, action, err, program)
	case v.yes:
		return nil
	case v.challenge:
		return fmt.Errorf("%w: %s (polkit wants an administrator's password for %s; the call must allow interactive authorization, and the session needs an authentication agent)", policy.ErrDenied, rule, action)
	}
	return fmt.Errorf("%w: %s (polkit action %s)", policy.ErrDenied, rule, action)
}

// A usualVerdict is the one about ActionUse without interaction. It is asked
// for once per connection and epoch.
type usualVerdict struct {
	epoch uint64
	done  chan struct{} // closed when the rest is set
	verdict
	err error
}

// usual says whether the peer may use VMs without being asked for a password.
// Everybody who wants to know it at a time shares one question.
func (a *polkit) usual(ctx context.Context, p *peer) (verdict, error) {
	epoch := a.epoch.Load()
	p.mu.Lock()
	u := p.usual
	if u == nil || u.epoch != epoch {
		u = &usualVerdict{epoch: epoch, done: make(chan struct{})}
		if !a.session.peers.start(func() { a.learn(p, u) }) {
			p.mu.Unlock()
			return verdict{}, errClosed
		}
		p.usual = u
	}
	p.mu.Unlock()
	select {
	case <-u.done:
		return u.verdict, u.err
	case <-ctx.Done():
		return verdict{}, context.Cause(ctx)
	}
}

func (a *polkit) learn(p *peer, u *usualVerdict) {
	defer close(u.done)
	u.verdict, u.err = a.ask(p.ctx, p, policy.ActionUse, false)
	if u.err == nil {
		return
	}
	// Perhaps polkit was not there yet. The next call asks again.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.usual == u {
		p.usual = nil
	}
}

// ask puts one question. It ends with ctx, with the link, and when the peer
// leaves the bus; a dialog is closed then.
func (a *polkit) ask(ctx context.Context, p *peer, action string, interactive bool) (verdict, error) {
	timeout, flags, id := polkitTimeout, uint32(0), ""
	if interactive {
		timeout, flags, id = dialogTimeout, polkitInteraction, strconv.FormatUint(a.ids.Add(1), 10)
	}
	ctx, stop := context.WithTimeoutCause(ctx, timeout, errPolkitSlow)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })()

	release, err := a.admit(ctx, p.caller.UID, interactive)
	if err != nil {
		return verdict{}, err
	}
	type answer struct {
		verdict
		err error
	}
	answered := make(chan answer, 1)
	// The place is taken until polkit answers, whether or not somebody still
	// waits: the bus counts what it has not answered.
	if p.ctx.Err() != nil || !a.session.peers.start(func() {
		v, err := a.check(a.session.ctx, p.name, action, flags, id)
		if gone(err) { // polkit was restarted since we last heard of it
			v, err = a.check(a.session.ctx, p.name, action, flags, id)
		}
		release()
		answered <- answer{v, err}
	}) {
		release()
		return verdict{}, errLeft
	}
	select {
	case r := <-answered:
		return r.verdict, r.err
	case <-ctx.Done():
		if interactive {
			a.cancel(id)
		}
		return verdict{}, context.Cause(ctx)
	}
}

// admit bounds how much is asked at a time. Questions wait for their turn,
// dialogs do not: they may be many minutes.
func (a *polkit) admit(ctx context.Context, uid uint32, interactive bool) (release func(), err error) {
	if !interactive {
		return a.questions.wait(ctx, uid)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dialogs[uid] >= maxDialogsPerUser || a.open >= maxDialogs {
		return nil, errDialogs
	}
	a.dialogs[uid]++
	a.open++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.open--
		if a.dialogs[uid]--; a.dialogs[uid] == 0 {
			delete(a.dialogs, uid)
		}
	}, nil
}

// check calls CheckAuthorization.
func (a *polkit) check(ctx context.Context, name, action string, flags uint32, id string) (verdict, error) {
	to, err := a.find(ctx)
	if err != nil {
		return verdict{}, err
	}
	type subject struct {
		Kind    string
		Details map[string]dbus.Variant
	}
	b, err := plainBody(subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(name)}},
		action, map[string]string{}, flags, id)
	if err != nil {
		return verdict{}, err
	}
	m, err := a.session.link.call(ctx, a.outgoing(to, "CheckAuthorization", b))
	if err != nil {
		return verdict{}, err
	}
	defer m.closeFDs()
	values, err := decodeReply(m)
	if err != nil {
		if gone(err) {
			a.moved(to, "")
		}
		return verdict{}, err
	}
	var result struct {
		Yes, Challenge bool
		Details        map[string]string
	}
	if err := dbus.Store(values, &result); err != nil {
		return verdict{}, fmt.Errorf("polkit's answer is not understood: %w", err)
	}
	return verdict{yes: result.Yes, challenge: result.Challenge}, nil
}

func (a *polkit) outgoing(to, member string, b body) *outgoing {
	return &outgoing{typ: typeCall, destination: to, path: polkitPath, iface: polkitInterface, member: member, body: b}
}

// cancel closes a dialog for which nobody waits any more.
func (a *polkit) cancel(id string) {
	a.mu.Lock()
	to := a.owner
	a.mu.Unlock()
	b, err := plainBody(id)
	if err == nil && to != "" {
		o := a.outgoing(to, "CancelCheckAuthorization", b)
		o.flags = flagNoReply
		err = a.session.link.send(o)
	}
	if err != nil && !errors.Is(err, errClosed) {
		a.session.server.log.Warn("can't tell polkit that a question is over", "err", err)
	}
}

// find returns polkit's connection and has polkit started when there is none.
// Questions go to that connection and not to the well-known name, so that
// nobody else's answer is taken for polkit's.
func (a *polkit) find(ctx context.Context) (string, error) {
	a.mu.Lock()
	owner := a.owner
	a.mu.Unlock()
	if owner != "" {
		return owner, nil
	}
	link := a.session.link
	if link.driver(ctx, "GetNameOwner", []any{polkitName}, &owner) != nil {
		var started uint32
		if err := link.driver(ctx, "StartServiceByName", []any{polkitName, uint32(0)}, &started); err != nil {
			return "", err
		}
		if err := link.driver(ctx, "GetNameOwner", []any{polkitName}, &owner); err != nil {
			return "", err
		}
	}
	a.mu.Lock()
	a.owner = owner
	a.mu.Unlock()
	return owner, nil
}

// moved notes that polkit has another connection, or none.
func (a *polkit) moved(from, to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.owner == from || to != "" {
		a.owner = to
	}
}

// is says whether name is polkit's connection.
func (a *polkit) is(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return name != "" && a.owner == name
}

// changed drops every answer that is kept, and asks again about those who hear
// of everybody's VMs.
func (a *polkit) changed() {
	a.epoch.Add(1)
	a.reviewAll()
}

func (a *polkit) reviewAll() {
	for _, p := range a.session.peers.watchers() {
		a.review(p)
	}
}

// review takes from a peer what it may not hear any more.
func (a *polkit) review(p *peer) {
	if p.caller.UID == 0 {
		return
	}
	a.session.peers.start(func() {
		if v, err := a.ask(p.ctx, p, policy.ActionManageOthers, false); err != nil || !v.yes {
			a.session.peers.subscribe(p.name, ownSignals)
			a.session.server.log.Info("a subscriber hears of its own VMs only from now on", "uid", p.caller.UID, "name", p.name, "err", err)
		}
	})
}

// gone says whether an error means that the connection we sent to is no more.
func gone(err error) bool {
	var e *callError
	if !errors.As(err, &e) {
		return false
	}
	switch e.name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.NoReply":
		return true
	}
	return false
}
