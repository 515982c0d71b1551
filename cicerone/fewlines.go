package cicerone

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// linesAllowed is how many lines a VM has in the log in a minute, but for
// errors, which are the host's.
const linesAllowed = 60

// fewLines is the log about one VM. Most of that the guest can bring about as
// often as it likes, and the journal drops everybody's lines when one program
// has too many.
type fewLines struct {
	slog.Handler
	count *lineCount
}

type lineCount struct {
	mu      sync.Mutex
	allowed window
	leftOut int
}

func newFewLines(log *slog.Logger) *slog.Logger {
	return slog.New(fewLines{log.Handler(), &lineCount{allowed: window{limit: linesAllowed, span: time.Minute}}})
}

func (h fewLines) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelError {
		ok, leftOut := h.count.one()
		if !ok {
			return nil
		}
		if leftOut > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("lines_left_out_before", leftOut))
		}
	}
	return h.Handler.Handle(ctx, r)
}

// one counts a line, and says how many were left out before it.
func (c *lineCount) one() (ok bool, leftOut int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.allowed.allow(time.Now()) {
		c.leftOut++
		return false, 0
	}
	leftOut, c.leftOut = c.leftOut, 0
	return true, leftOut
}

func (h fewLines) WithAttrs(attrs []slog.Attr) slog.Handler {
	return fewLines{h.Handler.WithAttrs(attrs), h.count}
}

func (h fewLines) WithGroup(name string) slog.Handler {
	return fewLines{h.Handler.WithGroup(name), h.count}
}
