package dbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// The bus itself, as a peer.
const (
	driverName = "org.freedesktop.DBus"
	driverPath = "/org/freedesktop/DBus"
)

var errClosed = errors.New("the bus connection is closed")

// A link is one connection to a bus, from authentication to its end.
//
// Messages are written by whoever has them, one at a time and with a deadline:
// what a goroutine has sent is on the wire when send returns, which is what
// keeps signals in order and ahead of the reply that follows them. The bus
// reads from us whether or not we read from it, except that it stops while
// messages of ours pile up before a peer that reads nothing; a link that can't
// write for that long is closed, and a new one has no such backlog.
type link struct {
	sock    *net.UnixConn
	timeout time.Duration // for a write

	wmu    sync.Mutex
	serial uint32
	broken error

	pmu     sync.Mutex
	pending map[uint32]pendingCall // nil after the end
}

type pendingCall struct {
	to    string
	reply chan *message
}

func newLink(sock *net.UnixConn, timeout time.Duration) *link {
	return &link{sock: sock, timeout: timeout, pending: map[uint32]pendingCall{}}
}

// send writes a message.
func (l *link) send(o *outgoing) error {
	_, err := l.transmit(o, nil)
	return err
}

// transmit writes a message; before learns its serial before an answer to it
// can come.
func (l *link) transmit(o *outgoing, before func(serial uint32) error) (uint32, error) {
	if len(o.body.data) > maxSend {
		return 0, fmt.Errorf("a message of %d bytes is more than the bus takes", len(o.body.data))
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.broken != nil {
		return 0, l.broken
	}
	if l.serial++; l.serial == 0 {
		l.serial = 1
	}
	if before != nil {
		if err := before(l.serial); err != nil {
			return 0, err
		}
	}
	if err := write(l.sock, o.encode(l.serial), o.body.fds, l.timeout); err != nil {
		l.broken = fmt.Errorf("%w: %w", errClosed, err)
		l.sock.Close()
		return 0, l.broken
	}
	return l.serial, nil
}

// call sends a method call and waits for its answer. It must not be used by
// the goroutine that reads the link.
func (l *link) call(ctx context.Context, o *outgoing) (*message, error) {
	p := pendingCall{to: o.destination, reply: make(chan *message, 1)}
	serial, err := l.transmit(o, func(serial uint32) error { return l.expect(serial, p) })
	if err != nil {
		l.forget(serial)
		return nil, err
	}
	select {
	case m, ok := <-p.reply:
		if !ok {
			return nil, errClosed
		}
		return m, nil
	case <-ctx.Done():
		l.forget(serial)
		select {
		case m, ok := <-p.reply: // it came just now
			if ok {
				m.closeFDs()
			}
		default:
		}
		return nil, context.Cause(ctx)
	}
}

func (l *link) expect(serial uint32, p pendingCall) error {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	if l.pending == nil {
		return errClosed
	}
	l.pending[serial] = p
	return nil
}

func (l *link) forget(serial uint32) {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	delete(l.pending, serial)
}

// answer hands a reply to the call that waits for it. It reports false for one
// that nobody waits for, or that comes from somebody who was not asked: on a
// bus with a lax policy anybody can send a reply with a guessed serial. The bus
// itself answers for those who are not there, or leave without an answer.
func (l *link) answer(m *message) bool {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	p, ok := l.pending[m.replySerial]
	if !ok || m.sender != p.to && m.sender != driverName {
		return false
	}
	delete(l.pending, m.replySerial)
	p.reply <- m
	return true
}

// close ends the link; calls that wait for an answer fail.
func (l *link) close() {
	l.sock.Close()
	l.pmu.Lock()
	defer l.pmu.Unlock()
	for _, p := range l.pending {
		close(p.reply)
	}
	l.pending = nil
}

// driver calls a method of the bus and stores its results.
func (l *link) driver(ctx context.Context, member string, args []any, results ...any) error {
	b, err := plainBody(args...)
	if err != nil {
		return err
	}
	m, err := l.call(ctx, &outgoing{
		typ: typeCall, path: driverPath, iface: driverName, member: member,
		destination: driverName, body: b,
	})
	if err != nil {
		return fmt.Errorf("can't call %s on the bus: %w", member, err)
	}
	defer m.closeFDs() // ProcessFD of GetConnectionCredentials, for one
	values, err := decodeReply(m)
	if err == nil {
		err = dbus.Store(values, results...)
	}
	if err != nil {
		return fmt.Errorf("can't call %s on the bus: %w", member, err)
	}
	return nil
}

// decodeReply decodes an answer of the bus itself, which is trusted.
func decodeReply(m *message) ([]any, error) {
	if m.err != nil || m.raw == nil {
		return nil, errors.Join(errMalformed, m.err)
	}
	msg, err := dbus.DecodeMessageWithFDs(bytes.NewReader(m.raw), m.fds)
	if err != nil {
		return nil, err
	}
	if m.typ == typeError {
		text := ""
		if len(msg.Body) > 0 {
			text, _ = msg.Body[0].(string)
		}
		return nil, &callError{name: m.errorName, text: text}
	}
	return msg.Body, nil
}

// read hands on what comes to a client of the bus, answers to who waits for
// them, until the link ends or signal, which whole signals are for, fails.
func (l *link) read(limit int, signal func(*message) error) error {
	r := newReader(l.sock, limit)
	for {
		m, err := r.next()
		if err != nil {
			return fmt.Errorf("can't read from the bus: %w", err)
		}
		switch {
		case m.err != nil:
		case m.typ == typeReturn || m.typ == typeError:
			if l.answer(m) {
				continue
			}
		case m.typ == typeSignal && m.raw != nil:
			err = signal(m)
		}
		m.closeFDs()
		if err != nil {
			return err
		}
	}
}
