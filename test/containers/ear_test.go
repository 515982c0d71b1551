package containers

import (
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
)

// An ear keeps what a connection hears of the daemons, in order.
type ear struct {
	t  *testing.T
	mu sync.Mutex
	// heard is what nobody has waited for yet.
	heard []proto.Message
	more  chan struct{} // one token when something was heard
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

func listen(t *testing.T, conn *godbus.Conn) *ear {
	e := &ear{t: t, more: make(chan struct{}, 1)}
	ch := make(chan *godbus.Signal, 1024)
	conn.Signal(ch)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			e.take(s)
		}
	}()
	t.Cleanup(func() {
		conn.RemoveSignal(ch)
		close(ch)
		<-done
	})
	return e
}

func (e *ear) take(s *godbus.Signal) {
	prototype, ok := payloads[s.Name]
	if !ok {
		if strings.HasPrefix(s.Name, "org.chromium.") {
			e.t.Errorf("unknown signal %s", s.Name)
		}
		return
	}
	m := prototype.ProtoReflect().New().Interface()
	b, _ := s.Body[0].([]byte)
	if err := proto.Unmarshal(b, m); err != nil {
		e.t.Errorf("signal %s: %v", s.Name, err)
		return
	}
	e.mu.Lock()
	e.heard = append(e.heard, m)
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// await waits for the next signal with a payload of type M that fits, a nil
// fits being any, and forgets it and those of its type before it. Signals of
// other types stay for others to wait for.
func await[M proto.Message](e *ear, fits func(M) bool) M {
	e.t.Helper()
	var passed []M
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		found, m := take(e, func(m M) bool {
			if fits == nil || fits(m) {
				return true
			}
			passed = append(passed, m)
			return false
		})
		if found {
			return m
		}
		select {
		case <-e.more:
		case <-timeout.C:
			e.mu.Lock()
			defer e.mu.Unlock()
			e.t.Fatalf("no %T that fits; heard of it: %v; heard besides: %v", m, passed, e.heard)
		}
	}
}

// take removes what was heard of type M up to the first that fits.
func take[M proto.Message](e *ear, fits func(M) bool) (bool, M) {
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

// all returns what was heard of type M so far, and forgets it.
func all[M proto.Message](e *ear) []M {
	var ms []M
	take(e, func(m M) bool { ms = append(ms, m); return false })
	return ms
}
