package vmc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/dbus"
)

// grace is how much longer than the service's own deadline an answer may take.
const grace = 30 * time.Second

// A session is a connection to the bus, by which it calls one of the services.
type session struct {
	conn *godbus.Conn
	*service
}

// A service is one of Auberge's on the bus.
type service struct {
	program string
	table   dbus.Service
	own     dbus.OwnInterface
}

func concierge() *service {
	return &service{"vm_concierge", dbus.ConciergeService(nil), dbus.Concierge1Interface(nil)}
}

func cicerone() *service {
	return &service{"vm_cicerone", dbus.CiceroneService(nil), dbus.Cicerone1Interface(nil)}
}

// services are all that there are.
func services() []*service { return []*service{concierge(), cicerone()} }

// connect makes a session with vm_concierge. Signals stay in their order,
// however slowly somebody takes them.
func (a *app) connect(ctx context.Context) (*session, error) {
	conn, err := bus.Connect(ctx, a.bus, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, withCode(ExitUnreachable, err)
	}
	return &session{conn: conn, service: concierge()}, nil
}

// with is the same connection to another service.
func (s *session) with(other *service) *session { return &session{conn: s.conn, service: other} }

func (s *session) close() { s.conn.Close() }

// withSession runs a command's body with a connection.
func (a *app) withSession(f func(context.Context, *session, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		return f(cmd.Context(), s, args)
	}
}

func (s *session) send(ctx context.Context, iface, method string, args ...any) *godbus.Call {
	return bus.Call(ctx, s.conn, s.table.BusName, godbus.ObjectPath(s.table.Path), iface, method, args...)
}

// call sends one request and fills in the response; either may be nil, for a
// method that has none.
func (s *session) call(ctx context.Context, method string, req, resp proto.Message, files ...*os.File) error {
	var args []any
	if req != nil {
		payload, err := proto.Marshal(req)
		if err != nil {
			return err
		}
		args = append(args, payload)
	}
	if len(files) > 0 {
		fds := make([]godbus.UnixFD, len(files))
		for i, f := range files {
			fds[i] = godbus.UnixFD(f.Fd())
		}
		args = append(args, fds)
	}
	limit := dbus.DefaultTimeout
	if m, ok := s.table.Method(method); ok && m.Timeout > 0 {
		limit = m.Timeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	call := s.send(ctx, s.table.Interface, method, args...)
	if call.Err != nil {
		return s.busError(method, call.Err)
	}
	if resp == nil {
		return nil
	}
	var answer []byte
	if err := call.Store(&answer); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", method, err)
	}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", method, err)
	}
	return nil
}

// plain calls a method of our own interface, which has plain types, and
// stores its results.
func (s *session) plain(ctx context.Context, method string, args []any, results ...any) error {
	limit := dbus.DefaultTimeout
	for _, m := range s.own.Methods {
		if m.Name == method && m.Timeout > 0 {
			limit = m.Timeout
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	call := s.send(ctx, s.own.Name, method, args...)
	if call.Err != nil {
		return s.busError(method, call.Err)
	}
	if err := call.Store(results...); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", method, err)
	}
	return nil
}

// busError makes an error of the bus one for people, with its exit code.
func (s *service) busError(method string, err error) error {
	var e godbus.Error
	switch {
	case errors.Is(err, context.Canceled):
		return withCode(ExitFailed, fmt.Errorf("%s: interrupted; the service may go on with it", method))
	case errors.Is(err, context.DeadlineExceeded):
		return withCode(ExitUnreachable, fmt.Errorf("%s: %s has not answered in time; see its log", method, s.program))
	case !errors.As(err, &e):
		return withCode(ExitUnreachable, fmt.Errorf("%s: %w", method, err))
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.AccessDenied":
		return withCode(ExitDenied, fmt.Errorf("%s: access denied: %s", method, e.Error()))
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.NoReply":
		return withCode(ExitUnreachable, fmt.Errorf("%s does not answer on this bus (is it running? see --bus): %s", s.program, e.Error()))
	case "org.freedesktop.DBus.Error.UnknownMethod":
		return withCode(ExitFailed, fmt.Errorf("%s: the %s that runs is older than this vmc and does not know the method: %s", method, s.program, e.Error()))
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
