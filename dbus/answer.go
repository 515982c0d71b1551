package dbus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// An endpoint answers the calls of one method.
type endpoint interface {
	serve(ctx context.Context, c *call) (body, error)
	// asks says which right it takes to call it.
	asks() rule
}

// A call is a method call in progress.
type call struct {
	*message
	session *session
	ticket  *ticket
	// failed says that the answer is a response which tells of a failure.
	failed bool
}

// dispatch takes in a call, in the goroutine that reads the bus: it refuses
// what is too much and leaves everything else to a goroutine of its own.
func (s *session) dispatch(m *message) {
	if m.sender == "" {
		m.closeFDs()
		s.server.log.Debug("dropped a call without a sender", "err", m.err)
		return
	}
	if err := s.acceptable(m); err != nil {
		m.closeFDs()
		s.reply(m, body{}, err)
		return
	}
	t, err := s.server.gate.enter(senderKey{s, m.sender}, len(m.raw))
	if err != nil {
		m.closeFDs()
		s.reply(m, body{}, err)
		return
	}
	go func() {
		defer t.leave()
		c := &call{message: m, session: s, ticket: t}
		b, err := c.answer()
		m.closeFDs()
		s.reply(m, b, err)
	}()
}

// acceptable refuses messages that can't be handled, whatever they call.
func (s *session) acceptable(m *message) error {
	switch {
	case m.lost:
		return newError(errLimitsExceeded, "the service has too many open files to take the descriptors")
	case m.raw == nil:
		return newError(errLimitsExceeded, "a message of %d bytes; a request may have %d", m.total, s.server.opts.Limits.Payload)
	case m.err != nil:
		return newError(errInvalidArgs, "%v", m.err)
	}
	return nil
}

// answer finds the method and runs it. A panic ends the call and nothing else.
func (c *call) answer() (b body, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.session.server.log.Error("a handler panicked", "member", c.member, "interface", c.iface,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			b, err = body{}, errInternal
		}
	}()
	e, err := c.session.server.find(c.message)
	if err != nil {
		return body{}, err
	}
	// The session's end does not end a call: a VM that is being started goes
	// on starting when the bus, or the caller, goes away.
	return e.serve(c.session.server.calls, c)
}

// identify says who calls, and counts the call as that user's.
func (c *call) identify(ctx context.Context) (*peer, error) {
	p, err := c.session.caller(ctx, c.message)
	if err != nil {
		return nil, err
	}
	return p, c.ticket.belong(p.caller.UID)
}

// reply answers m with b, or with err. It takes over b's descriptors.
func (s *session) reply(m *message, b body, err error) {
	defer closeAll(b.fds)
	if m.flags&flagNoReply != 0 {
		return
	}
	if err == nil && len(b.data) > maxSend {
		err = newError(errLimitsExceeded, "the answer has %d bytes, which is more than the bus takes", len(b.data))
	}
	if errors.Is(err, errDefect) {
		s.server.log.Error("can't answer a call", "member", m.member, "interface", m.iface, "err", err)
		err = errInternal
	}
	if err != nil {
		s.replyError(m, asCallError(err, errFailed))
		return
	}
	o := &outgoing{typ: typeReturn, flags: flagNoReply, destination: m.sender, replySerial: m.serial, body: b}
	var before func(uint32) error
	if len(b.fds) > 0 {
		before = func(serial uint32) error { s.carry(serial, m); return nil }
	}
	if _, err := s.link.transmit(o, before); err != nil {
		s.server.log.Debug("dropped a reply", "member", m.member, "err", err)
	}
}

func (s *session) replyError(m *message, e *callError) {
	b, err := plainBody(callerText(e.text))
	if err != nil {
		s.server.log.Error("can't encode an error", "err", err)
	}
	o := &outgoing{
		typ: typeError, flags: flagNoReply, errorName: e.name,
		destination: m.sender, replySerial: m.serial, body: b,
	}
	if err := s.link.send(o); err != nil {
		s.server.log.Debug("dropped an error reply", "member", m.member, "err", err)
	}
}

// maxCarriers is how many answers with descriptors are remembered.
const maxCarriers = 64

// carry remembers an answer with descriptors.
func (s *session) carry(serial uint32, m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.order = append(s.order, serial); len(s.order) > maxCarriers {
		delete(s.carriers, s.order[0])
		s.order = s.order[1:]
	}
	s.carriers[serial] = &message{fixedHeader: m.fixedHeader, header: m.header}
}

// undelivered tells a caller that its connection can't take descriptors
// (busctl's can't). The bus tells only us, and the caller would wait for an
// answer until its time is up.
func (s *session) undelivered(m *message) {
	if m.typ != typeError || m.sender != driverName {
		return
	}
	s.mu.Lock()
	caller := s.carriers[m.replySerial]
	delete(s.carriers, m.replySerial)
	s.mu.Unlock()
	if caller != nil {
		s.replyError(caller, newError(errNotSupported, "the answer is a file descriptor, which your connection to the bus does not take"))
	}
}
