// Package bus connects a client to the D-Bus bus that its user names.
package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Connect connects to "system", "session" or a D-Bus address. The connection
// ends with ctx.
func Connect(ctx context.Context, address string) (*dbus.Conn, error) {
	conn, err := connect(ctx, address)
	if err != nil {
		return nil, explain(address, err)
	}
	return conn, nil
}

func connect(ctx context.Context, address string) (*dbus.Conn, error) {
	opt := dbus.WithContext(ctx)
	switch address {
	case "", "system":
		return dbus.ConnectSystemBus(opt)
	case "session":
		if os.Getenv("DBUS_SESSION_BUS_ADDRESS") == "" {
			return nil, errors.New("DBUS_SESSION_BUS_ADDRESS is not set, so this process has no session bus")
		}
		return dbus.ConnectSessionBus(opt)
	}
	return dbus.Connect(address, opt)
}

// explain says what was tried and what to do about it.
func explain(address string, err error) error {
	what := "the bus at " + address
	switch address {
	case "", "system":
		what = "the system bus"
	case "session":
		what = "the session bus"
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = " (is a dbus-daemon running there? another bus can be named with --bus)"
	case errors.Is(err, fs.ErrPermission):
		hint = " (you may not use that bus)"
	}
	return fmt.Errorf("connect to %s: %w%s", what, err, hint)
}
