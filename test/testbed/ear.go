package testbed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
)

// An Ear keeps what a connection hears of the daemons, in order.
type Ear struct {
	mu sync.Mutex
	// heard is what nobody has waited for yet.
	heard []proto.Message
	err   error
	more  chan struct{} // one token when something was heard
	done  chan struct{}
}

// payloads are prototypes of what signals carry, by interface and member.
var payloads = func() map[string]proto.Message {
	m := map[string]proto.Message{}
	for _, s := range []dbus.Service{dbus.ConciergeService(nil), dbus.CiceroneService(nil)} {
		for _, signal := range s.Signals {
			m[s.Interface+"."+signal.Name] = signal.Payload
		}
	}
	return m
}()

// Listen listens on a connection until that is closed.
func Listen(conn *godbus.Conn) *Ear {
	e := &Ear{more: make(chan struct{}, 1), done: make(chan struct{})}
	ch := make(chan *godbus.Signal, 1024)
	conn.Signal(ch)
	go func() {
		defer close(e.done)
		for s := range ch {
			e.take(s)
		}
	}()
	return e
}

// Done is closed when nothing is heard any more.
func (e *Ear) Done() <-chan struct{} { return e.done }

// Err is what was heard and is no signal of the contracts.
func (e *Ear) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

func (e *Ear) take(s *godbus.Signal) {
	prototype, ok := payloads[s.Name]
	if !ok && !strings.HasPrefix(s.Name, "org.chromium.") {
		return
	}
	m, err := read(prototype, s)
	e.mu.Lock()
	if err != nil {
		e.err = errors.Join(e.err, fmt.Errorf("signal %s: %w", s.Name, err))
	} else {
		e.heard = append(e.heard, m)
	}
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

func read(prototype proto.Message, s *godbus.Signal) (proto.Message, error) {
	if prototype == nil {
		return nil, errors.New("the contracts have none of this name")
	}
	var b []byte
	if err := godbus.Store(s.Body, &b); err != nil {
		return nil, err
	}
	m := prototype.ProtoReflect().New().Interface()
	return m, proto.Unmarshal(b, m)
}

// Await waits for the next signal with a payload of type M that fits, a nil
// fits being any, and forgets it and those of its type before it. Signals of
// other types stay for others to wait for.
func Await[M proto.Message](ctx context.Context, e *Ear, fits func(M) bool) (M, error) {
	var passed []M
	for {
		found, m := take(e, func(m M) bool {
			if fits == nil || fits(m) {
				return true
			}
			passed = append(passed, m)
			return false
		})
		if found {
			return m, nil
		}
		select {
		case <-e.more:
		case <-ctx.Done():
			e.mu.Lock()
			defer e.mu.Unlock()
			return m, fmt.Errorf("no %T that fits: %w; heard of it: %v; heard besides: %v", m, context.Cause(ctx), passed, e.heard)
		}
	}
}

// take removes what was heard of type M up to the first that fits.
func take[M proto.Message](e *Ear, fits func(M) bool) (bool, M) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := 0; i < len(e.heard); {
		m, ok := e.heard[i].(M)
		if !ok {
			i++
			continue
		}
		e.heard = append(e.heard[:i:i], e.heard[i+1:]...)
		if fits(m) {
			return true, m
		}
	}
	var none M
	return false, none
}

// All returns what was heard of type M so far, and forgets it.
func All[M proto.Message](e *Ear) []M {
	var ms []M
	take(e, func(m M) bool { ms = append(ms, m); return false })
	return ms
}
