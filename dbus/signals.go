package dbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/policy"
)

// audienceTimeout bounds how long a signal waits for connections that the bus
// is being asked about.
const audienceTimeout = 2 * time.Second

// An exportedSignal is a table's entry with the place that it comes from.
type exportedSignal struct {
	path, iface string
	payload     protoreflect.FullName // of a signal with a protobuf
	args        string                // signature of one with plain values
	public      bool
}

// Emit sends a signal about a VM of the given user to those who may hear of
// it: the user's own connections unless that is root, connections that called
// Subscribe and have the right, and Auberge's daemons. When it returns, the
// signal is on its way, ahead of anything that is sent later. Without a bus
// there is nobody to be told, which is no error.
func (s *Server) Emit(ctx context.Context, ownerUID uint32, member string, msg proto.Message) error {
	signal, ok := s.signals[member]
	if !ok {
		return fmt.Errorf("there is no signal %s", member)
	}
	if got := msg.ProtoReflect().Descriptor().FullName(); got != signal.payload {
		return fmt.Errorf("signal %s carries %s, not %s", member, signal.payload, got)
	}
	data, err := proto.Marshal(msg)
	if err != nil {
		return fmt.Errorf("can't encode signal %s: %w", member, err)
	}
	return s.emit(ctx, ownerUID, member, signal, payloadBody(data))
}

// EmitOwn sends a signal of one of our own interfaces, with plain values, to
// the same people. A map[string]any among the values goes as a{sv}.
func (s *Server) EmitOwn(ctx context.Context, ownerUID uint32, member string, values ...any) error {
	signal, ok := s.signals[member]
	if !ok || signal.payload != "" {
		return fmt.Errorf("there is no signal %s of our own", member)
	}
	b, err := plainBody(plainValues(values)...)
	if err == nil && b.sig != signal.args {
		err = fmt.Errorf("values of type %q instead of %q", b.sig, signal.args)
	}
	if err != nil {
		return fmt.Errorf("can't encode signal %s: %w", member, err)
	}
	return s.emit(ctx, ownerUID, member, signal, b)
}

func (s *Server) emit(ctx context.Context, ownerUID uint32, member string, signal exportedSignal, b body) error {
	sess := s.current.Load()
	if sess == nil {
		return nil
	}
	to := []string{""}
	if !s.opts.BroadcastSignals && !signal.public {
		ctx, cancel := context.WithTimeout(ctx, audienceTimeout)
		defer cancel()
		to = sess.peers.choose(ctx, func(c policy.Caller, subscribed subscription) bool {
			return s.mayHear(c, subscribed, ownerUID)
		})
	}
	o := &outgoing{
		typ: typeSignal, flags: flagNoReply, path: signal.path, iface: signal.iface,
		member: member, body: b,
	}
	for _, o.destination = range to {
		if err := sess.link.send(o); errors.Is(err, errClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("can't send signal %s: %w", member, err)
		}
	}
	return nil
}

// mayHear decides who hears of a VM. Root's
// connections are half the system's daemons, so they have to subscribe.
func (s *Server) mayHear(c policy.Caller, subscribed subscription, owner uint32) bool {
	switch {
	case c.UID == owner && owner != 0, slices.Contains(s.opts.DaemonUIDs, c.UID):
		return true
	}
	return subscribed == everybodysSignals || subscribed == ownSignals && c.UID == owner
}
