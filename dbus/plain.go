package dbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/policy"
)

// An OwnInterface is one of ours, io.github.auberge_vm.*, on a service's
// object. Its methods have plain D-Bus types, so that a shell script can use
// them.
type OwnInterface struct {
	Path, Name string
	Methods    []PlainMethod
	Signals    []PlainSignal
}

// A PlainSignal carries plain D-Bus values.
type PlainSignal struct {
	Name string
	Args []Arg
}

// A PlainMethod takes and returns plain D-Bus types.
type PlainMethod struct {
	Name    string
	In, Out []Arg
	Right   policy.Right
	// Watch is for the method that subscribes to signals: with RightSelf, an
	// administrator's call is about everybody.
	Watch   bool
	Timeout time.Duration // zero means DefaultTimeout
	// Weight is as a Method's.
	Weight int

	handle func(context.Context, *plainCall) ([]any, error)
}

// An Arg is an argument or a result. Arguments are of the types s, u, b, a{sv}
// and h; an argument owner_id is the owner word of a RightOwn or RightAdmin
// method.
type Arg struct{ Name, Type string }

// A plainCall is what the handler of a PlainMethod is called with: a string,
// uint32, bool, map[string]any or *os.File for each of In. Files are closed when
// the handler returns.
type plainCall struct {
	session *session
	subject policy.Subject
	args    []any
	// epoch is polkit's before it was asked about the caller.
	epoch uint64
}

// ownerArg is the name of the argument with the owner word.
const ownerArg = "owner_id"

func (m *PlainMethod) check() error {
	switch {
	case m.handle == nil:
		return errors.New("it has no handler")
	case !m.Right.Known():
		return fmt.Errorf("nobody has the right %q", m.Right)
	case m.Right == policy.RightOwn && m.ownerIndex() < 0:
		return errors.New("it has no argument owner_id")
	}
	for _, arg := range m.In {
		if !slices.Contains([]string{"s", "u", "b", "a{sv}", "h"}, arg.Type) {
			return fmt.Errorf("arguments of type %q can't be read", arg.Type)
		}
	}
	return nil
}

func (m *PlainMethod) ownerIndex() int {
	for i, arg := range m.In {
		if arg.Name == ownerArg && arg.Type == "s" {
			return i
		}
	}
	return -1
}

// plainValues turns dictionaries into what godbus encodes as a{sv}.
func plainValues(values []any) []any {
	out := make([]any, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case map[string]any:
			out[i] = variants(v)
		case []map[string]any:
			list := make([]map[string]dbus.Variant, len(v))
			for j, d := range v {
				list[j] = variants(d)
			}
			out[i] = list
		default:
			out[i] = v
		}
	}
	return out
}

func variants(d map[string]any) map[string]dbus.Variant {
	out := make(map[string]dbus.Variant, len(d))
	for k, v := range d {
		if s, ok := v.(string); ok {
			v = callerText(s)
		}
		out[k] = dbus.MakeVariant(v)
	}
	return out
}

// plainEndpoint answers the calls of a PlainMethod.
type plainEndpoint struct{ PlainMethod }

func (e *plainEndpoint) asks() rule { return rule{right: e.Right, watch: e.Watch} }

func (e *plainEndpoint) serve(ctx context.Context, c *call) (body, error) {
	p, err := c.identify(ctx)
	if err != nil {
		return body{}, err
	}
	args, err := readArgs(c.message, e.In)
	if err != nil {
		return body{}, newError(errInvalidArgs, "%v", err)
	}
	defer closeFiles(c.takeArgs(args))
	c.raw = nil
	c.ticket.parsed()
	word := ""
	if i := e.ownerIndex(); i >= 0 {
		word = args[i].(string)
	}
	pc := &plainCall{session: c.session, args: args}
	if c.session.polkit != nil {
		pc.epoch = c.session.polkit.epoch.Load()
	}
	pc.subject, err = c.authorize(ctx, p, e.asks(), word)
	if err != nil {
		return body{}, asCallError(err, ErrorFailed)
	}
	if err := c.ticket.weigh(e.Weight); err != nil {
		return body{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutOr(e.Timeout))
	defer cancel()
	results, err := e.handle(ctx, pc)
	if err != nil {
		return body{}, asCallError(err, ErrorFailed)
	}
	b, err := writeResults(plainValues(results))
	if err == nil && b.sig != signatureOf(e.Out) {
		closeAll(b.fds)
		err = fmt.Errorf("results of type %q", b.sig)
	}
	if err != nil {
		return body{}, fmt.Errorf("%w: can't encode the answer of %s: %w", errDefect, e.Name, err)
	}
	return b, nil
}
