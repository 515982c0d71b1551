package testbed

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Dial connects to the bus as a user. The connection is made on a thread that
// has the user's identity, which is what the bus sees of it.
func (b *Bed) Dial(ctx context.Context, u User) (*dbus.Conn, error) {
	if os.Geteuid() != 0 || u.UID == 0 {
		return dbus.Connect(b.Address, dbus.WithContext(ctx))
	}
	type result struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and nobody else
		// runs with the user's identity.
		runtime.LockOSThread()
		if err := becomeOnThread(u); err != nil {
			done <- result{err: err}
			return
		}
		conn, err := dbus.Dial(b.Address, dbus.WithContext(ctx))
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("connect to the bus as %s: %w", u.Name, r.err)
	}
	auth := dbus.AuthExternal(strconv.FormatUint(uint64(u.UID), 10))
	err := r.conn.Auth([]dbus.Auth{auth})
	if err == nil {
		err = r.conn.Hello()
	}
	if err != nil {
		// The bus counts one that it has refused until it is closed.
		r.conn.Close()
		return nil, fmt.Errorf("connect to the bus as %s: %w", u.Name, err)
	}
	return r.conn, nil
}

// DialSocket connects to the bus's socket as a user and says nothing yet.
func (b *Bed) DialSocket(u User) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see Dial
		if os.Geteuid() == 0 && u.UID != 0 {
			if err := becomeOnThread(u); err != nil {
				done <- result{err: err}
				return
			}
		}
		conn, err := net.Dial("unix", filepath.Join(b.Dir, "bus"))
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// becomeOnThread changes the identity of the calling thread alone, which the
// wrappers of the standard library would not.
func becomeOnThread(u User) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); e != 0 {
		return e
	}
	return nil
}
