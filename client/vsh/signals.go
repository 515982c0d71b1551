package vsh

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// defaultPatience is how long a signal may wait to be sent before another one
// makes vsh give up on a guest that takes nothing.
const defaultPatience = time.Second

// forwarded are the signals that the protocol has a number for.
var forwarded = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// A signals is a subscription to this process's signals.
type signals struct{ c chan os.Signal }

// notifySignals subscribes, except to what the process was started to ignore,
// as by nohup. SIGPIPE is among them so that a write to a broken pipe returns
// an error, and the terminal is restored.
func notifySignals() signals {
	s := signals{make(chan os.Signal, 16)}
	for _, sig := range append([]os.Signal{syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGPIPE}, forwarded...) {
		if !signal.Ignored(sig) {
			signal.Notify(s.c, sig)
		}
	}
	return s
}

func (s signals) stop() { signal.Stop(s.c) }

// A controls turns signals into messages. Receiving and sending are apart, so
// that a guest that takes nothing cannot keep vsh from being ended.
type controls struct {
	s        *session
	term     *rawTerminal
	patience time.Duration
	signals  chan syscall.Signal
	resized  chan struct{}
	since    atomic.Int64 // when the oldest unsent signal came, in ns; 0 for none
}

func newControls(s *session, term *rawTerminal) *controls {
	return &controls{
		s:        s,
		term:     term,
		patience: cmp.Or(s.opts.patience, defaultPatience),
		signals:  make(chan syscall.Signal, 16),
		resized:  make(chan struct{}, 1),
	}
}

// listen acts on signals until ctx is done.
func (c *controls) listen(ctx context.Context, sigs <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-sigs:
			c.take(sig.(syscall.Signal))
		}
	}
}

func (c *controls) take(sig syscall.Signal) {
	switch sig {
	case syscall.SIGPIPE:
	case syscall.SIGCONT:
		c.term.again()
		c.resize()
	case syscall.SIGWINCH:
		c.resize()
	default:
		if c.s.opts.Pty {
			c.s.end(128+int(sig), &SignalError{sig})
			return
		}
		c.forward(sig)
	}
}

func (c *controls) resize() {
	select {
	case c.resized <- struct{}{}:
	default: // one is on its way, and will see the newest size
	}
}

func (c *controls) forward(sig syscall.Signal) {
	now := time.Now().UnixNano()
	if since := c.since.Load(); since != 0 && time.Duration(now-since) >= c.patience {
		c.s.end(128+int(sig), fmt.Errorf("the VM takes no messages: %w", &SignalError{sig}))
		return
	}
	c.since.CompareAndSwap(0, now)
	select {
	case c.signals <- sig:
	default:
	}
}

// send sends what listen found until ctx is done. Failures are left to receive.
func (c *controls) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.resized:
			if !c.s.opts.Pty {
				continue
			}
			if rows, cols := windowSize(c.s.opts.Stdout, c.s.opts.Stdin); rows > 0 {
				c.s.out.Write(&vshpb.GuestMessage{Msg: &vshpb.GuestMessage_ResizeMessage{
					ResizeMessage: &vshpb.WindowResizeMessage{Rows: rows, Cols: cols},
				}})
			}
		case sig := <-c.signals:
			c.s.out.Write(&vshpb.GuestMessage{Msg: &vshpb.GuestMessage_Signal{Signal: vshpb.Signal(sig)}})
			if len(c.signals) == 0 {
				c.since.Store(0)
			}
		}
	}
}
