package packagekit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// setupTime is for a transaction to begin, which may start PackageKit.
	setupTime = 40 * time.Second
	// cancelTime is for one to be cancelled, and then for it to end.
	cancelTime = 2 * time.Second
)

// A transaction is one of PackageKit's, on a connection of its own.
type transaction struct {
	conn   *dbus.Conn
	daemon string // unique name
	object dbus.BusObject
	came   chan *dbus.Signal // closed with the connection
	said   transcript
}

var errDied = errors.New("PackageKit ended in the middle; its journal may say why (sudo journalctl -u packagekit)")

// begin makes a transaction. A daemon that was about to exit, as PackageKit
// does when it has been idle, is asked for once more.
func (c *Client) begin(ctx context.Context) (*transaction, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	t, err := c.tryBegin(ctx)
	if err != nil && ctx.Err() == nil && nobodyThere(err) {
		t, err = c.tryBegin(ctx)
	}
	if err != nil {
		return nil, explain(err)
	}
	return t, nil
}

func (c *Client) tryBegin(ctx context.Context) (*transaction, error) {
	conn, err := c.dial(dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, fmt.Errorf("dial the container's system bus: %w", err)
	}
	// What follows has the deadline, even where godbus knows none.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	t := &transaction{conn: conn, came: make(chan *dbus.Signal, 64)}
	if err := t.open(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return t, nil
}

func (t *transaction) open(ctx context.Context) error {
	if err := t.conn.Auth(nil); err != nil {
		return fmt.Errorf("log in to the container's system bus: %w", err)
	}
	if err := t.conn.Hello(); err != nil {
		return fmt.Errorf("log in to the container's system bus: %w", err)
	}
	t.conn.Signal(t.came)
	if err := t.find(ctx); err != nil {
		return err
	}
	if err := t.conn.AddMatchSignalContext(ctx,
		dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, t.daemon)); err != nil {
		return fmt.Errorf("watch PackageKit: %w", err)
	}
	var path dbus.ObjectPath
	daemon := t.conn.Object(t.daemon, daemonPath)
	if err := daemon.CallWithContext(ctx, busName+".CreateTransaction", 0).Store(&path); err != nil {
		return fmt.Errorf("begin a transaction of PackageKit: %w", err)
	}
	t.object = t.conn.Object(t.daemon, path)
	if err := t.conn.AddMatchSignalContext(ctx,
		dbus.WithMatchSender(t.daemon), dbus.WithMatchObjectPath(path)); err != nil {
		return fmt.Errorf("watch a transaction of PackageKit: %w", err)
	}
	hints := []string{"locale=C.UTF-8", "background=false", "interactive=false", "supports-plural-signals=true"}
	if err := t.call(ctx, "SetHints", hints); err != nil {
		return err
	}
	return nil
}

// find learns the daemon's unique name, and has it started if it does not run.
func (t *transaction) find(ctx context.Context) error {
	owner := func() error {
		return t.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&t.daemon)
	}
	if owner() == nil {
		return nil
	}
	start := t.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.StartServiceByName", 0, busName, uint32(0))
	if start.Err != nil {
		return fmt.Errorf("start PackageKit: %w", start.Err)
	}
	if err := owner(); err != nil {
		return fmt.Errorf("find PackageKit, which was started: %w", err)
	}
	return nil
}

// close ends the connection. What the transaction does goes on.
func (t *transaction) close() { t.conn.Close() }

// call makes a call of the transaction.
func (t *transaction) call(ctx context.Context, method string, args ...any) error {
	if err := t.object.CallWithContext(ctx, transactionIface+"."+method, 0, args...).Err; err != nil {
		return explain(fmt.Errorf("%s: %w", method, err))
	}
	return nil
}

// wait takes what the transaction says until it is over, and calls each, if
// there is one, after everything that came. It gives up when ctx is done, or
// when nothing came for the time silence.
func (t *transaction) wait(ctx context.Context, silence time.Duration, each func(*transcript)) error {
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for !t.said.over() {
		select {
		case sig, ok := <-t.came:
			if !ok {
				return errors.New("the container's system bus hung up")
			}
			if t.died(sig) {
				if len(t.said.errors) > 0 {
					return fmt.Errorf("%w: %w", errDied, t.said.result())
				}
				return errDied
			}
			if sig.Sender != t.daemon || sig.Path != t.object.Path() {
				continue
			}
			t.said.take(sig)
			if each != nil && !t.said.over() {
				each(&t.said)
			}
			quiet.Reset(silence)
		case <-quiet.C:
			t.cancel()
			return fmt.Errorf("PackageKit has said nothing for %s; it was told to stop", silence)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return t.said.result()
}

// died says whether a signal is the bus's word that the daemon is gone.
func (t *transaction) died(sig *dbus.Signal) bool {
	if sig.Sender != "org.freedesktop.DBus" || sig.Name != "org.freedesktop.DBus.NameOwnerChanged" || len(sig.Body) != 3 {
		return false
	}
	return sig.Body[0] == any(t.daemon) && sig.Body[2] == any("")
}

// cancel asks for the end and says whether PackageKit will stop: what installs
// already cannot be stopped.
func (t *transaction) cancel() bool {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	return t.call(ctx, "Cancel") == nil
}

func nobodyThere(err error) bool {
	var e dbus.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.NoReply":
		return true
	case "org.freedesktop.DBus.Error.ServiceUnknown":
		// The bus says the same of a name that nothing can start and of a
		// unique name that is gone; only trying tells.
		return true
	}
	return false
}

// explain says what to do about the failures that have a remedy.
func explain(err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown":
		return fmt.Errorf("PackageKit is not installed in this container (sudo apt install packagekit): %w", err)
	case "org.freedesktop.PackageKit.Transaction.RefusedByPolicy", "org.freedesktop.DBus.Error.AccessDenied":
		return fmt.Errorf("the container's polkit rules do not let this user change packages: %w", err)
	case "org.freedesktop.PackageKit.Transaction.MimeTypeNotSupported":
		return fmt.Errorf("PackageKit does not take that kind of file, or does not know it without shared-mime-info (sudo apt install shared-mime-info): %w", err)
	}
	return err
}
