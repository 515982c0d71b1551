package helper

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// A verb is one of the things that the helper does.
type verb struct {
	// timeout bounds one use, whatever the peer would wait for.
	timeout time.Duration
	// parse reads the arguments. Nothing is looked at or done yet.
	parse func(args json.RawMessage) (task, error)
}

// A task is one use of a verb, ready to be done.
type task interface {
	// check refuses what the helper does for nobody.
	check(s *Server) error
	// run does it. The descriptor is the peer's; there need not be one.
	run(ctx context.Context, s *Server) (*os.File, error)
	// audit says what is asked and for whom, in pairs of words and values
	// for the log. No secrets.
	audit() []any
	// whose names those who share a bound: what goes on for one of them must
	// not keep the helper from the others.
	whose() string
}

// verbs are all there are.
var verbs = map[string]verb{
	"open": {timeout: 35 * time.Second, parse: parse[*openArgs]},
	"dial": {timeout: 15 * time.Second, parse: parse[*dialArgs]},

	"reserve-cid": {timeout: 5 * time.Second, parse: parse[*reserveArgs]},
	"tap-add":     {timeout: 15 * time.Second, parse: parse[*tapAddArgs]},
	"tap-remove":  {timeout: 15 * time.Second, parse: parse[*tapRemoveArgs]},
}

// parse reads the arguments of a verb, a pointer to a struct.
func parse[T interface {
	*A
	task
}, A any](b json.RawMessage) (task, error) {
	args := T(new(A))
	if err := decode(b, args); err != nil {
		return nil, err
	}
	return args, nil
}

// parseRequest reads a packet.
func parseRequest(b []byte) (name string, v verb, t task, err error) {
	var r request
	if err := decode(b, &r); err != nil {
		return "", verb{}, nil, err
	}
	v, ok := verbs[r.Verb]
	if !ok {
		return r.Verb, verb{}, nil, fmt.Errorf("%w: there is no verb %q", ErrRefused, r.Verb)
	}
	t, err = v.parse(r.Args)
	return r.Verb, v, t, err
}
