package hostcalls

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var silent = slog.New(slog.DiscardHandler)

// A receiver takes notices as a host does.
type receiver struct {
	mu   sync.Mutex
	got  []string
	all  chan struct{} // closed when the last one came
	last string
}

func newReceiver(last string) *receiver { return &receiver{all: make(chan struct{}), last: last} }

func (r *receiver) take(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, name)
	if name == r.last {
		close(r.all)
	}
	return nil
}

func (r *receiver) notice(name, key string) Notice {
	return Notice{Name: name, Key: key, Send: func(context.Context) error { return r.take(name) }}
}

// run runs a queue until the receiver has its last notice.
func run(t *testing.T, q *Queue, r *receiver) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Run(ctx)
	}()
	select {
	case <-r.all:
	case <-time.After(time.Minute):
		t.Error("the last notice did not come")
	}
	cancel()
	<-done
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.got, " ")
}

func TestQueueKeepsOrder(t *testing.T) {
	q, r := NewQueue(silent), newReceiver("d")
	q.Push(r.notice("a", "x"))
	q.Push(r.notice("b", ""))
	q.Push(r.notice("c", "x")) // in the place of a
	q.Push(r.notice("d", ""))
	if got := run(t, q, r); got != "b c d" {
		t.Errorf("the host got %q", got)
	}
}

// A host that is away gets the notice when it is there again, and what it
// refuses does not hold up the next.
func TestQueueTriesAgain(t *testing.T) {
	q, r := NewQueue(silent), newReceiver("last")
	attempts := 0
	q.Push(Notice{Name: "a", Send: func(context.Context) error {
		if attempts++; attempts < 3 {
			return status.Error(codes.Unavailable, "away")
		}
		return r.take("a")
	}})
	refused := 0
	q.Push(Notice{Name: "b", Send: func(context.Context) error {
		refused++
		return errors.New("no")
	}})
	q.Push(r.notice("last", ""))
	if got := run(t, q, r); got != "a last" || attempts != 3 || refused != 1 {
		t.Errorf("the host got %q after %d attempts, and refused %d", got, attempts, refused)
	}
}

// However long the host is away: whoever comes back hears how things ended.
func TestQueueKeepsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, r := NewQueue(silent), newReceiver("last")
		var back atomic.Bool
		push := func(name string, keep bool) {
			q.Push(Notice{Name: name, Keep: keep, Send: func(context.Context) error {
				if !back.Load() {
					return status.Error(codes.FailedPrecondition, "not said that it is ready")
				}
				return r.take(name)
			}})
		}
		push("progress", false)
		push("end", true)
		time.AfterFunc(5*time.Hour, func() { back.Store(true); push("last", false) })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-r.all; cancel() }()
		q.Run(ctx)
		if got := strings.Join(r.got, " "); got != "end last" {
			t.Errorf("the host got %q", got)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	q, r := NewQueue(silent), newReceiver("last")
	kept := r.notice("kept", "")
	kept.Keep = true
	q.Push(kept)
	for i := range queueMost * 2 {
		q.Push(r.notice(fmt.Sprint(i), ""))
	}
	q.Push(r.notice("last", ""))
	got := strings.Fields(run(t, q, r))
	if len(got) != queueMost || got[0] != "kept" || got[1] != fmt.Sprint(queueMost+2) {
		t.Errorf("%d notices came, first %v", len(got), got[:min(3, len(got))])
	}
}

// What was on its way when the agent ends is not lost.
func TestQueueFlush(t *testing.T) {
	q, r := NewQueue(silent), newReceiver("")
	ctx, cancel := context.WithCancel(context.Background())
	sent := 0
	q.Push(Notice{Name: "a", Send: func(context.Context) error {
		if sent++; sent == 1 {
			cancel()
			return status.Error(codes.Canceled, "the agent ends")
		}
		return r.take("a")
	}})
	q.Push(r.notice("b", ""))
	q.Run(ctx)
	q.Flush(context.Background())
	if got := strings.Join(r.got, " "); got != "a b" {
		t.Errorf("the host got %q", got)
	}
}
