package dbus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/policy"
)

const (
	// lookupTimeout bounds one question to the bus about a peer.
	lookupTimeout = 10 * time.Second
	// maxLookups is how many such questions are open at a time.
	maxLookups = 32
)

// A subscription is what a peer wants to hear of.
type subscription int

const (
	noSignals subscription = iota
	ownSignals
	// everybodysSignals are for administrators.
	everybodysSignals
)

// A peer is a connection on the bus.
type peer struct {
	name string
	// ctx ends when the peer leaves the bus, and with the link.
	ctx  context.Context
	left context.CancelCauseFunc
	// known is closed once caller or err is set.
	known  chan struct{}
	caller policy.Caller
	err    error
	// subscribed is guarded by the registry's lock.
	subscribed subscription

	mu    sync.Mutex
	usual *usualVerdict
}

var errLeft = errors.New("the caller has left the bus")

// A registry knows who the connections on a bus are. It lives as long as one
// link: unique names are never used twice by a bus, but a new bus starts from
// the beginning.
type registry struct {
	ask   func(ctx context.Context, name string) (policy.Caller, error)
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	peers  map[string]*peer
	closed bool
}

func newRegistry(ask func(context.Context, string) (policy.Caller, error)) *registry {
	return &registry{ask: ask, slots: make(chan struct{}, maxLookups), peers: map[string]*peer{}}
}

// meet returns the peer called name, and asks the bus about it when it is new.
// All who meet it share that one question. ctx is the link's.
func (r *registry) meet(ctx context.Context, name string) *peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[name]; p != nil {
		return p
	}
	p := &peer{name: name, known: make(chan struct{})}
	p.ctx, p.left = context.WithCancelCause(ctx)
	if r.closed {
		p.err = errClosed
		close(p.known)
		p.left(errClosed)
		return p
	}
	r.peers[name] = p
	r.wg.Go(func() { r.identify(ctx, p) })
	return p
}

func (r *registry) identify(ctx context.Context, p *peer) {
	defer close(p.known)
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		p.err = ctx.Err()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	p.caller, p.err = r.ask(ctx, p.name)
	if p.err == nil {
		return
	}
	// Most likely it has left the bus. Somebody who is still there may ask
	// again.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers[p.name] == p {
		delete(r.peers, p.name)
		p.left(errLeft)
	}
}

// start runs f in a goroutine for which close waits, unless it is too late.
func (r *registry) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.wg.Go(f)
	}
	return !r.closed
}

// close waits for the questions that are open; there are no new ones.
func (r *registry) close() {
	r.mu.Lock()
	r.closed = true
	for _, p := range r.peers {
		p.left(errClosed)
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// forget drops a peer that has left the bus.
func (r *registry) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[name]; p != nil {
		delete(r.peers, name)
		p.left(errLeft)
	}
}

// identity waits until p is known.
func (p *peer) identity(ctx context.Context) (policy.Caller, error) {
	select {
	case <-p.known:
		return p.caller, p.err
	case <-ctx.Done():
		return policy.Caller{}, ctx.Err()
	}
}

// subscribe notes what a peer that is still there wants to hear.
func (r *registry) subscribe(name string, to subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[name]; p != nil {
		p.subscribed = to
	}
}

// watchers lists the peers that hear of everybody's VMs.
func (r *registry) watchers() (list []*peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		if p.subscribed == everybodysSignals {
			list = append(list, p)
		}
	}
	return list
}

// choose lists the peers that want says yes to. Peers who are being asked
// about are waited for, until ctx ends: a client that connects and then has a
// VM started must not miss its signals.
func (r *registry) choose(ctx context.Context, want func(c policy.Caller, subscribed subscription) bool) []string {
	r.mu.Lock()
	all := make([]*peer, 0, len(r.peers))
	for _, p := range r.peers {
		all = append(all, p)
	}
	r.mu.Unlock()
	for _, p := range all {
		p.identity(ctx)
	}
	var names []string
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range all {
		select {
		case <-p.known:
		default:
			continue
		}
		if p.err == nil && want(p.caller, p.subscribed) {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// credentials asks the bus who name is.
func (l *link) credentials(ctx context.Context, name string) (policy.Caller, error) {
	var found map[string]dbus.Variant
	if err := l.driver(ctx, "GetConnectionCredentials", []any{name}, &found); err != nil {
		return policy.Caller{}, err
	}
	uid, ok := found["UnixUserID"].Value().(uint32)
	if !ok {
		return policy.Caller{}, errors.New("the bus does not know the caller's uid")
	}
	groups, _ := found["UnixGroupIDs"].Value().([]uint32)
	return policy.Caller{Name: name, UID: uid, Groups: groups}, nil
}
