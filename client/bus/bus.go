// Package bus connects clients to the D-Bus bus that a --bus flag names. It
// owns nothing: the connection is the caller's.
package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// The values of --bus that are not an address.
const (
	System  = "system"
	Session = "session"
)

const systemAddress = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket"

// Connect connects to the bus that address names: System, Session, an address
// in D-Bus's form such as unix:path=/run/x/bus, or just the absolute path of a
// socket. Empty is System. The context bounds connecting, not the connection.
// The connection passes descriptors. The error says what was tried.
func Connect(ctx context.Context, address string, options ...dbus.ConnOption) (*dbus.Conn, error) {
	name, full, err := resolve(address)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, full, options)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s at %s: %w%s", name, full, err, advice(address, err))
	}
	if !conn.SupportsUnixFDs() {
		conn.Close()
		return nil, fmt.Errorf("%s at %s does not pass file descriptors: name a bus on a Unix socket with --bus", name, full)
	}
	return conn, nil
}

// resolve returns what to call a bus and its address.
func resolve(address string) (name, full string, err error) {
	switch {
	case address == "" || address == System:
		if env := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); env != "" {
			return "the system bus", env, nil
		}
		return "the system bus", systemAddress, nil
	case address == Session:
		full, err := sessionAddress()
		return "the session bus", full, err
	case strings.HasPrefix(address, "/"):
		return "the bus", "unix:path=" + dbus.EscapeBusAddressValue(address), nil
	case strings.Contains(address, ":"):
		return "the bus", address, nil
	}
	return "", "", fmt.Errorf("--bus %s: give %s, %s or an address such as unix:path=/run/dbus/bus", address, System, Session)
}

// sessionAddress is the user's bus. godbus would start one where there is none.
func sessionAddress() (string, error) {
	if env := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); env != "" && env != "autolaunch:" {
		return env, nil
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return "", errors.New("there is no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set; " +
			"log in to a session, or name a bus with --bus")
	}
	return "unix:path=" + dbus.EscapeBusAddressValue(dir+"/bus"), nil
}

func dial(ctx context.Context, address string, options []dbus.ConnOption) (*dbus.Conn, error) {
	type result struct {
		conn *dbus.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		conn, err := dbus.Dial(address, options...)
		dialled <- result{conn, err}
	}()
	var res result
	select {
	case res = <-dialled:
	case <-ctx.Done():
		go func() { // dbus.Dial takes no context, and ends in its own time
			if late := <-dialled; late.conn != nil {
				late.conn.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
	if res.err != nil {
		return nil, res.err
	}
	stop := context.AfterFunc(ctx, func() { res.conn.Close() })
	err := res.conn.Auth(nil)
	if err == nil {
		err = res.conn.Hello()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		res.conn.Close()
		return nil, err
	}
	return res.conn, nil
}

// advice is what to do about an error.
func advice(address string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		if address == "" || address == System {
			return " (is dbus-daemon running? for another bus, use --bus)"
		}
		return " (is there a bus at this address?)"
	case errors.Is(err, fs.ErrPermission):
		return " (may this user use that bus?)"
	}
	return ""
}
