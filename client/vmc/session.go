package vmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/dbus"
)

// A session is a connection to vm_concierge.
type session struct {
	conn  *godbus.Conn
	table dbus.Service
}

func (a *app) connect(ctx context.Context) (*session, error) {
	conn, err := bus.Connect(ctx, a.bus)
	if err != nil {
		return nil, withCode(ExitUnreachable, err)
	}
	return &session{conn: conn, table: dbus.ConciergeService(nil)}, nil
}

func (s *session) close() { s.conn.Close() }

// call sends one request and fills in the response.
func (s *session) call(ctx context.Context, method string, req, resp proto.Message, files ...*os.File) error {
	payload, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	args := []any{payload}
	if len(files) > 0 {
		fds := make([]godbus.UnixFD, len(files))
		for i, f := range files {
			fds[i] = godbus.UnixFD(f.Fd())
		}
		args = append(args, fds)
	}
	obj := s.conn.Object(s.table.BusName, godbus.ObjectPath(s.table.Path))
	var answer []byte
	if err := obj.CallWithContext(ctx, s.table.Interface+"."+method, 0, args...).Store(&answer); err != nil {
		return busError(method, err)
	}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", method, err)
	}
	return nil
}

// busError makes an error of the bus one for people, with its exit code.
func busError(method string, err error) error {
	var e godbus.Error
	if !errors.As(err, &e) {
		return withCode(ExitUnreachable, fmt.Errorf("%s: %w", method, err))
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.AccessDenied":
		return withCode(ExitDenied, fmt.Errorf("%s: access denied: %s", method, e.Error()))
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.NoReply":
		return withCode(ExitUnreachable, fmt.Errorf("vm_concierge does not answer on this bus (is it running? see --bus): %s", e.Error()))
	case dbus.ErrorNotFound, dbus.ErrorNotRunning:
		return withCode(ExitNotFound, errors.New(e.Error()))
	}
	return withCode(ExitFailed, fmt.Errorf("%s: %s", method, e.Error()))
}

// refused is the error of a response that says no.
func refused(what, reason string) error {
	if reason == "" {
		reason = "no reason was given"
	}
	return withCode(ExitFailed, fmt.Errorf("%s: %s", what, reason))
}

// printJSON prints a message as JSON with the names of the contract.
func (a *app) printJSON(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	return a.printIndented(b)
}

// printIndented gives protojson's output, which varies its spaces on purpose,
// one shape.
func (a *app) printIndented(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, string(out))
	return err
}
