package dbustest

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// A User is one that a client can be. Those that every Debian system has are
// named here.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Users without a login that are in /etc/passwd everywhere.
var (
	Root   = User{}
	Daemon = User{UID: 1, GID: 1}
	Bin    = User{UID: 2, GID: 2}
	Games  = User{UID: 5, GID: 60}
)

// Connect returns a client that runs as the test does.
func (b *Bus) Connect(t testing.TB) *dbus.Conn {
	t.Helper()
	return b.connect(t, uint32(os.Geteuid()), func() error { return nil })
}

// ConnectAs returns a client of another user. Without root the test
// fails.
func (b *Bus) ConnectAs(t testing.TB, u User) *dbus.Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root to connect as other users")
	}
	return b.connect(t, u.UID, func() error { return become(u) })
}

func (b *Bus) connect(t testing.TB, uid uint32, prepare func() error) *dbus.Conn {
	t.Helper()
	var conn *dbus.Conn
	err := onOwnThread(func() error {
		if err := prepare(); err != nil {
			return err
		}
		// The kernel notes whose a connection is when it is made.
		var err error
		if conn, err = dbus.Dial(b.Address); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.FormatUint(uint64(uid), 10))}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Hello(); err != nil {
		t.Fatal(err)
	}
	return conn
}

// onOwnThread runs f on a thread that ends with it, so that what f does to the
// thread's credentials concerns nobody else.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// become makes the calling thread, and no other, one of u's. The wrappers in
// packages syscall and unix change all threads.
func become(u User) error {
	groups := append([]uint32{}, u.Groups...)
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return errno
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return errno
	}
	return nil
}
