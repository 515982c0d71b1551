package bus

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

const (
	maxInhibitions = 256 // in all
	maxOfOne       = 64  // of one program
	maxWaiting     = 512 // calls to the host
)

// saver knows which programs keep the screen on. The host is told by one
// goroutine, so that it hears of a cookie's end after its beginning.
type saver struct {
	log  *slog.Logger
	host Host
	some chan struct{}

	mu      sync.Mutex
	last    uint32
	live    map[uint32]string // the program by cookie
	waiting []word
	told    chan struct{} // closed when nothing waits and somebody asked
	over    bool          // nothing is told any more
}

// A word is something to be told to the host.
type word struct {
	cookie         uint32
	begin          bool
	client, reason string
	answer         chan error
}

func newSaver(log *slog.Logger, host Host) *saver {
	return &saver{log: log, host: host, some: make(chan struct{}, 1), live: map[uint32]string{}}
}

// inhibit returns the cookie and where the host's answer will come.
func (s *saver) inhibit(sender, client, reason string) (uint32, <-chan error, *dbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, nil, failed("", "the agent of the container ends")
	}
	own := 0
	for _, name := range s.live {
		if name == sender {
			own++
		}
	}
	if len(s.live) >= maxInhibitions || own >= maxOfOne || len(s.waiting) >= maxWaiting {
		return 0, nil, failed("LimitsExceeded", "too many programs keep the screen on, or one of them too often")
	}
	for {
		s.last = s.last%math.MaxInt32 + 1
		if _, used := s.live[s.last]; !used {
			break
		}
	}
	s.live[s.last] = sender
	answer := make(chan error, 1)
	s.push(word{cookie: s.last, begin: true, client: client, reason: reason, answer: answer})
	return s.last, answer, nil
}

// end gives a cookie back; only its own program may.
func (s *saver) end(sender string, cookie uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[cookie] != sender {
		return false
	}
	delete(s.live, cookie)
	s.push(word{cookie: cookie})
	return true
}

// release ends what a program had; releaseAll what all had.
func (s *saver) release(sender string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cookie, name := range s.live {
		if name == sender {
			delete(s.live, cookie)
			s.push(word{cookie: cookie})
		}
	}
}

func (s *saver) releaseAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cookie := range s.live {
		delete(s.live, cookie)
		s.push(word{cookie: cookie})
	}
}

// push is called with the lock held. Ends are as many as beginnings, which are
// bounded.
func (s *saver) push(w word) {
	s.waiting = append(s.waiting, w)
	select {
	case s.some <- struct{}{}:
	default:
	}
}

// tell tells the host, until ctx is done.
func (s *saver) tell(ctx context.Context) {
	defer s.stop(ctx)
	for {
		s.mu.Lock()
		if len(s.waiting) == 0 {
			if s.told != nil {
				close(s.told)
				s.told = nil
			}
			s.mu.Unlock()
			select {
			case <-s.some:
				continue
			case <-ctx.Done():
				return
			}
		}
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.mu.Unlock()
		if !w.begin {
			if err := s.host.UninhibitScreensaver(ctx, &pb.UninhibitScreensaverInfo{Cookie: int32(w.cookie)}); err != nil {
				s.log.Warn("the host did not hear that the screen may go dark", "cookie", w.cookie, "err", err)
			}
		} else {
			w.answer <- s.host.InhibitScreensaver(ctx, &pb.InhibitScreensaverInfo{Cookie: int32(w.cookie), Client: w.client, Reason: w.reason})
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// stop answers those who still wait.
func (s *saver) stop(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, w := range s.waiting {
		if w.begin {
			w.answer <- ctx.Err()
		}
	}
	s.waiting = nil
}

// drain waits until the host was told all, or as long as it may take.
func (s *saver) drain(most time.Duration) {
	told := make(chan struct{})
	s.mu.Lock()
	s.told = told
	s.mu.Unlock()
	select {
	case s.some <- struct{}{}:
	default:
	}
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-told:
	case <-t.C:
	}
}

// saverFace is what the bus sees of it.
type saverFace struct {
	saver   *saver
	present func(name string) bool
}

// Inhibit keeps the screen on until UnInhibit, or the program leaves.
func (f saverFace) Inhibit(sender dbus.Sender, client, reason string) (uint32, *dbus.Error) {
	cookie, answer, refused := f.saver.inhibit(string(sender), short(client), short(reason))
	if refused != nil {
		return 0, refused
	}
	if err := <-answer; err != nil {
		// It may have taken it all the same.
		f.saver.end(string(sender), cookie)
		return 0, failed("", "the host does not keep the screen on: %v", err)
	}
	// It may have left before its name was known here.
	if !f.present(string(sender)) {
		f.saver.release(string(sender))
	}
	return cookie, nil
}

// UnInhibit gives a cookie back.
func (f saverFace) UnInhibit(sender dbus.Sender, cookie uint32) *dbus.Error {
	if !f.saver.end(string(sender), cookie) {
		return failed("InvalidArgs", "there is no cookie %d of this program", cookie)
	}
	return nil
}

var saverNode = &introspect.Node{Interfaces: []introspect.Interface{
	introspect.IntrospectData,
	{Name: screenSaverName, Methods: []introspect.Method{
		{Name: "Inhibit", Args: []introspect.Arg{
			{Name: "application_name", Type: "s", Direction: "in"}, {Name: "reason_for_inhibit", Type: "s", Direction: "in"}, {Name: "cookie", Type: "u", Direction: "out"},
		}},
		{Name: "UnInhibit", Args: []introspect.Arg{{Name: "cookie", Type: "u", Direction: "in"}}},
	}},
}}
