package dbus

import (
	"context"
	"sync"
	"time"
)

// Limits bound what callers may use up. Zero means the default.
type Limits struct {
	// Payload is the longest request, in bytes; 4 MiB.
	Payload int
	// CallsPerSender and CallsPerUser bound the calls in progress of one
	// connection (64) and of all connections of one user (256); Calls bounds
	// all of them (1024).
	CallsPerSender, CallsPerUser, Calls int
	// BytesPerSender and Bytes bound the messages that were received and are
	// not read yet: 16 and 64 MiB.
	BytesPerSender, Bytes int
	// Write is how long the bus may take no bytes of ours; 10 s.
	Write time.Duration
	// Drain is how long calls in progress may take at shutdown; 10 s.
	Drain time.Duration
}

func (l Limits) withDefaults() Limits {
	set := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	set(&l.Payload, 4<<20)
	set(&l.CallsPerSender, 64)
	set(&l.CallsPerUser, 256)
	set(&l.Calls, 1024)
	set(&l.BytesPerSender, 16<<20)
	set(&l.Bytes, 64<<20)
	if l.Write == 0 {
		l.Write = 10 * time.Second
	}
	if l.Drain == 0 {
		l.Drain = 10 * time.Second
	}
	return l
}

// maxRequestFields bounds the records of a request, known or not. A record of
// two bytes can become a message of a hundred and fifty, so that a request of
// 4 MiB could take 300 MiB to hold.
const maxRequestFields = 1 << 16

// longAnswer is the weight of methods with a short request and an answer of
// megabytes: eight calls of a user leave places for others.
const longAnswer = 30

// load is what a sender, or everybody together, is using.
type load struct{ calls, bytes int }

// senderKey tells senders apart across a restart of the bus.
type senderKey struct {
	session *session
	name    string
}

// A gate counts calls in progress.
type gate struct {
	limits Limits

	mu      sync.Mutex
	all     load
	senders map[senderKey]*load
	users   map[uint32]int
	closed  bool
	empty   chan struct{} // closed when closed and the last call is gone
}

func newGate(limits Limits) *gate {
	return &gate{
		limits: limits, senders: map[senderKey]*load{}, users: map[uint32]int{},
		empty: make(chan struct{}),
	}
}

// A ticket is a place inside.
type ticket struct {
	gate  *gate
	key   senderKey
	bytes int
	uid   uint32
	named bool // uid is counted
	more  int  // calls for which this one counts beside itself
}

// enter asks for a place for one call in a message of n bytes. It never waits.
func (g *gate) enter(key senderKey, n int) (*ticket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sender := g.senders[key]
	if sender == nil {
		sender = new(load)
	}
	l := &g.limits
	switch {
	case g.closed:
		return nil, newError(errFailed, "the service is shutting down")
	case sender.calls >= l.CallsPerSender:
		return nil, newError(errLimitsExceeded, "%d calls of this connection are in progress", sender.calls)
	case sender.bytes+n > l.BytesPerSender:
		return nil, newError(errLimitsExceeded, "%d bytes of this connection's requests are in progress", sender.bytes)
	case g.all.calls >= l.Calls || g.all.bytes+n > l.Bytes:
		return nil, newError(errLimitsExceeded, "the service has too many calls in progress")
	}
	for _, l := range []*load{&g.all, sender} {
		l.calls++
		l.bytes += n
	}
	g.senders[key] = sender
	return &ticket{gate: g, key: key, bytes: n}, nil
}

// belong counts the call as one of uid's as well.
func (t *ticket) belong(uid uint32) error {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.users[uid]; n >= g.limits.CallsPerUser {
		return newError(errLimitsExceeded, "%d calls of this user are in progress", n)
	}
	g.users[uid]++
	t.uid, t.named = uid, true
	return nil
}

// weigh counts the call, whose user is known, as n calls.
func (t *ticket) weigh(n int) error {
	if n <= 1 {
		return nil
	}
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	more := n - 1
	switch {
	case g.users[t.uid]+more > g.limits.CallsPerUser:
		return newError(errLimitsExceeded, "%d calls of this user are in progress, and this one counts for %d", g.users[t.uid]-1, n)
	case g.all.calls+more > g.limits.Calls:
		return newError(errLimitsExceeded, "the service has too many calls in progress")
	}
	g.users[t.uid] += more
	g.all.calls += more
	t.more = more
	return nil
}

// parsed gives back the bytes: nobody holds the message any more.
func (t *ticket) parsed() {
	t.gate.mu.Lock()
	defer t.gate.mu.Unlock()
	t.giveBytes()
}

func (t *ticket) giveBytes() {
	t.gate.all.bytes -= t.bytes
	t.gate.senders[t.key].bytes -= t.bytes
	t.bytes = 0
}

// leave gives back everything.
func (t *ticket) leave() {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	t.giveBytes()
	g.all.calls -= 1 + t.more
	if sender := g.senders[t.key]; sender.calls > 1 {
		sender.calls--
	} else {
		delete(g.senders, t.key)
	}
	if t.named {
		if g.users[t.uid] -= 1 + t.more; g.users[t.uid] == 0 {
			delete(g.users, t.uid)
		}
	}
	g.signalEmpty()
}

func (g *gate) signalEmpty() {
	if g.closed && g.all.calls == 0 {
		close(g.empty)
	}
}

// drain lets nobody in any more and waits until all are out, or ctx ends.
func (g *gate) drain(ctx context.Context) error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		g.signalEmpty()
	}
	g.mu.Unlock()
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
