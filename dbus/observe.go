package dbus

import (
	"context"
	"time"
)

// An Observer is told of every call of the exported methods. It must be quick:
// callers wait for it.
type Observer interface {
	// Method returns what is told of the calls of one method; it is asked once
	// for each when the server is made.
	Method(iface, member string) func(took time.Duration, outcome Outcome)
}

// An Outcome is how a call ended.
type Outcome string

const (
	// OutcomeOK: the handler did what was asked, or said no in words of its
	// own.
	OutcomeOK Outcome = "ok"
	// OutcomeFailed: the response says that it failed, and why.
	OutcomeFailed Outcome = "failed"
	// OutcomeError: the answer is a D-Bus error.
	OutcomeError Outcome = "error"
)

// observed has the observer told of an endpoint's calls, where there is one.
func (s *Server) observed(iface, member string, e endpoint) endpoint {
	if s.opts.Observer == nil {
		return e
	}
	return &observedEndpoint{e, s.opts.Observer.Method(iface, member)}
}

type observedEndpoint struct {
	endpoint
	done func(time.Duration, Outcome)
}

func (e *observedEndpoint) serve(ctx context.Context, c *call) (b body, err error) {
	began, outcome := time.Now(), OutcomeError // unless it returns
	defer func() { e.done(time.Since(began), outcome) }()
	b, err = e.endpoint.serve(ctx, c)
	switch {
	case err != nil:
	case c.failed:
		outcome = OutcomeFailed
	default:
		outcome = OutcomeOK
	}
	return b, err
}
