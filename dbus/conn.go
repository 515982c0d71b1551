package dbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// systemBus is where the system bus listens unless the environment says
// otherwise (D-Bus specification, "Well-known Message Bus Instances").
const systemBus = "unix:path=/var/run/dbus/system_bus_socket"

// dialTimeout bounds connecting and authenticating together. A bus drops
// connections that need longer than its own auth_timeout (5 s on Debian).
const dialTimeout = 10 * time.Second

// dial connects to the bus at where ("system", "session" or a D-Bus server
// address) and authenticates. The connection may carry descriptors; Hello is
// still to be said.
func dial(ctx context.Context, where string) (*net.UnixConn, error) {
	addresses, err := busAddresses(where)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var failures []error
	for _, address := range addresses {
		sock, err := dialAddress(ctx, address)
		if err == nil {
			return sock, nil
		}
		failures = append(failures, fmt.Errorf("can't connect to bus %q: %w", address, err))
	}
	return nil, errors.Join(failures...)
}

func dialAddress(ctx context.Context, address string) (*net.UnixConn, error) {
	name, err := socketName(address)
	if err != nil {
		return nil, err
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	sock := c.(*net.UnixConn)
	if err := authenticate(ctx, sock); err != nil {
		sock.Close()
		return nil, err
	}
	return sock, nil
}

// busAddresses lists the server addresses to try for where.
func busAddresses(where string) ([]string, error) {
	switch where {
	case "system":
		where = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
		if where == "" {
			where = systemBus
		}
	case "session":
		where = os.Getenv("DBUS_SESSION_BUS_ADDRESS")
		if where == "" {
			where = "unix:runtime=yes"
		}
	}
	var list []string
	for address := range strings.SplitSeq(where, ";") {
		if address != "" {
			list = append(list, address)
		}
	}
	if len(list) == 0 {
		return nil, errors.New(`no bus address: want "system", "session" or an address such as unix:path=/run/dbus/system_bus_socket`)
	}
	return list, nil
}

// socketName turns one server address into the name that package net dials;
// an abstract socket's begins with "@".
func socketName(address string) (string, error) {
	transport, keys, ok := strings.Cut(address, ":")
	if !ok || transport != "unix" {
		return "", fmt.Errorf("%q is not an address of a Unix socket", address)
	}
	for pair := range strings.SplitSeq(keys, ",") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := dbus.UnescapeBusAddressValue(value)
		if err != nil {
			return "", err
		}
		switch key {
		case "path":
			return value, nil
		case "abstract":
			return "@" + value, nil
		case "runtime":
			dir := os.Getenv("XDG_RUNTIME_DIR")
			if dir == "" {
				return "", errors.New("there is no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
			}
			return dir + "/bus", nil
		}
	}
	return "", fmt.Errorf("%q names neither path nor abstract", address)
}

// authenticate runs the client's side of the handshake (D-Bus specification,
// "Authentication Protocol"): EXTERNAL with the process's effective uid, then
// descriptor passing, without which we serve nobody.
func authenticate(ctx context.Context, sock *net.UnixConn) error {
	deadline, _ := ctx.Deadline()
	if err := sock.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	mechanism, uid, _ := dbus.AuthExternal(fmt.Sprint(os.Geteuid())).FirstData()
	if err := exchange(sock, fmt.Sprintf("\x00AUTH %s %s\r\n", mechanism, uid), "OK"); err != nil {
		return err
	}
	if err := exchange(sock, "NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD"); err != nil {
		return err
	}
	if _, err := sock.Write([]byte("BEGIN\r\n")); err != nil {
		return err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return sock.SetDeadline(time.Time{})
}

// exchange sends one line and expects an answer that begins with want.
func exchange(sock *net.UnixConn, line, want string) error {
	if _, err := sock.Write([]byte(line)); err != nil {
		return err
	}
	// Byte by byte: what follows the last answer belongs to the first message
	// and may carry descriptors, so nothing may be read ahead.
	var answer []byte
	for b := make([]byte, 1); ; {
		if _, err := sock.Read(b); err != nil {
			return fmt.Errorf("can't authenticate: %w", err)
		}
		if b[0] == '\n' {
			break
		}
		if answer = append(answer, b[0]); len(answer) > 1024 {
			return errors.New("can't authenticate: the answer is no D-Bus line")
		}
	}
	if word, _, _ := strings.Cut(strings.TrimSuffix(string(answer), "\r"), " "); word != want {
		return fmt.Errorf("can't authenticate: the bus answered %q instead of %s", answer, want)
	}
	return nil
}
