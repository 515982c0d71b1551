package vmc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"
)

// cancelTime bounds what is done after an interruption.
const cancelTime = 30 * time.Second

// Tests have less time.
var (
	// lookEvery is how often the service is asked how far work is, should a
	// signal have been lost.
	lookEvery = 5 * time.Second
	// returnTime is how long a service that left the bus may stay away.
	returnTime = 30 * time.Second
)

// A follower hears what vm_cicerone says of one VM of one owner, from the
// moment that it is made.
type follower struct {
	s         *session
	vm, owner string
	signals   chan *godbus.Signal
	at        string // the unique name of vm_cicerone; empty while it is away
}

// follow begins to listen. The session is vm_cicerone's; the follower ends
// with its connection.
func (a *app) follow(ctx context.Context, s *session, vm string) (*follower, error) {
	f := &follower{s: s, vm: vm, owner: a.ownerWord(), signals: make(chan *godbus.Signal, 16)}
	s.conn.Signal(f.signals)
	if err := s.match(ctx); err != nil {
		return nil, err
	}
	// A service that can be started is, by the first call, whose signals must
	// be known for its own.
	s.wake()
	err := s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, s.table.BusName).Store(&f.at)
	if err != nil {
		f.at = "" // its coming is announced
	}
	return f, f.subscribe(ctx)
}

// end takes no more signals.
func (f *follower) end() { f.s.conn.RemoveSignal(f.signals) }

// subscribe asks for signals that do not come by themselves: root's, and for
// an administrator those about other people.
func (f *follower) subscribe(ctx context.Context) error {
	uid := os.Geteuid()
	label := strings.Trim(f.owner, "0123456789") != ""
	if f.at == "" || uid != 0 && (label || f.owner == fmt.Sprint(uid)) {
		return nil
	}
	return f.s.plain(ctx, "Subscribe", nil)
}

// wake has the bus start the service if it can, and waits for that.
func (s *session) wake() {
	ctx, cancel := context.WithTimeout(context.Background(), returnTime)
	defer cancel()
	// What cannot be started this way says so at the first call.
	s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.StartServiceByName", 0, s.table.BusName, uint32(0))
}

// nudge has the bus start the service if it can, and waits for nothing.
func (s *session) nudge() {
	s.conn.BusObject().Go("org.freedesktop.DBus.StartServiceByName", godbus.FlagNoReplyExpected, nil, s.table.BusName, uint32(0))
}

// Work is something that goes on in the background.
type work struct {
	// what it is, for errors: "create the container penguin".
	what string
	// hear is told of each signal about the VM, and says whether it was the
	// last one.
	hear func(member string, msg proto.Message) (over bool, err error)
	// look finds out whether the work is over without a signal. again says
	// that the service that did it has left and another one is there.
	look func(ctx context.Context, again bool) (over bool, err error)
	// cancel is what to do when a person interrupts it; the end of the work
	// is waited for then. Without it the work is left to go on.
	cancel func(ctx context.Context) error
}

// await waits for the end of work.
func (f *follower) await(ctx context.Context, w work) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	interrupted := ctx.Done()
	var cancelled, away <-chan time.Time
	calls := context.WithoutCancel(ctx)
	for {
		select {
		case <-interrupted:
			if w.cancel == nil {
				return withCode(ExitFailed, fmt.Errorf("%s: %w", w.what, interruption(ctx)))
			}
			interrupted = nil
			limit, stop := context.WithTimeout(calls, cancelTime)
			err := w.cancel(limit)
			stop()
			if err != nil {
				return withCode(ExitFailed, fmt.Errorf("%s: interrupted, and it cannot be cancelled: %w", w.what, err))
			}
			cancelled = time.After(cancelTime)
		case <-cancelled:
			return withCode(ExitFailed, fmt.Errorf("%s: cancelled, and vm_cicerone has not said within %v that it is over", w.what, cancelTime))
		case sig := <-f.signals:
			if sig == nil {
				return withCode(ExitUnreachable, fmt.Errorf("%s: the bus has ended the connection", w.what))
			}
			if here, moved := f.moved(sig); moved {
				if away = nil; !here {
					away = time.After(returnTime)
					f.s.nudge()
					continue
				}
				if err := f.subscribe(calls); err != nil {
					return err
				}
				if done, err := f.look(calls, w, true); done || err != nil {
					return err
				}
				continue
			}
			if member, msg := f.read(sig); msg != nil {
				if done, err := w.hear(member, msg); done || err != nil {
					return err
				}
			}
		case <-tick.C:
			if f.at == "" || len(f.signals) > 0 {
				continue // what has been said tells more than a look would
			}
			if done, err := f.look(calls, w, false); done || err != nil {
				return err
			}
		case <-away:
			return withCode(ExitUnreachable, fmt.Errorf("%s: vm_cicerone has left the bus in the middle and did not come back within %v; what became of it is not known", w.what, returnTime))
		}
	}
}

// look asks once. A service that leaves meanwhile is noticed by its leaving.
func (f *follower) look(ctx context.Context, w work, again bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, cancelTime)
	defer cancel()
	done, err := w.look(ctx, again)
	if err != nil && exitCodeOf(err) == ExitUnreachable && f.s.conn.Connected() {
		return false, nil
	}
	if err != nil {
		return false, withCode(exitCodeOf(err), fmt.Errorf("%s: %w", w.what, err))
	}
	return done, nil
}

// moved says whether a signal tells that vm_cicerone came or went, and whether
// it is there now.
func (f *follower) moved(sig *godbus.Signal) (here, moved bool) {
	var name, before, after string
	if sig.Name != "org.freedesktop.DBus.NameOwnerChanged" || sig.Sender != "org.freedesktop.DBus" ||
		godbus.Store(sig.Body, &name, &before, &after) != nil || name != f.s.table.BusName || after == f.at {
		return false, false
	}
	f.at = after
	return after != "", true
}

// read is a signal of vm_cicerone's about the VM, nil for any other. Anybody
// may send signals.
func (f *follower) read(sig *godbus.Signal) (string, proto.Message) {
	if f.at == "" || sig.Sender != f.at || string(sig.Path) != f.s.table.Path {
		return "", nil
	}
	iface, member := splitMember(sig.Name)
	if iface != f.s.table.Interface {
		return "", nil
	}
	msg, err := f.s.readPayload(member, sig.Body)
	if err != nil || stringField(msg, "vm_name") != f.vm || stringField(msg, "owner_id") != f.owner {
		return "", nil
	}
	return member, msg
}

// interruption is the error of work that goes on after it was interrupted, or
// that has taken too long.
func interruption(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return errors.New("interrupted; it goes on in the VM")
}
