package vshd

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reads and writes of descriptors that never make anybody wait. They are raw:
// the runtime takes a thread that spends twenty microseconds in a system call
// for one that waits, which in an emulated guest is every one that copies
// something, and looking for other work then costs more than the data.

// readNow reads what there is.
func readNow(fd int, p []byte) (int, error) { return now(unix.SYS_READ, fd, p) }

// writeNow writes what there is room for.
func writeNow(fd int, p []byte) (int, error) { return now(unix.SYS_WRITE, fd, p) }

func now(call uintptr, fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// A tap is a stream that is read and written so.
type tap struct {
	net.Conn
	raw syscall.RawConn // nil where there is none
}

func newTap(c net.Conn) *tap {
	t := &tap{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		t.raw, _ = s.SyscallConn()
	}
	return t
}

func (t *tap) Read(p []byte) (n int, err error) {
	if t.raw == nil || len(p) == 0 {
		n, err = t.Conn.Read(p)
	} else {
		werr := t.raw.Read(func(fd uintptr) bool {
			n, err = readNow(int(fd), p)
			return err != unix.EAGAIN
		})
		switch {
		case werr != nil:
			n, err = 0, werr
		case err == nil && n == 0:
			err = io.EOF
		}
	}
	return n, err
}

// writeMost bounds one write: what every vsock backend carries in one packet,
// see guestWrite in package vsock.
const writeMost = 32 << 10

func (t *tap) Write(p []byte) (n int, err error) {
	if t.raw == nil {
		return t.Conn.Write(p)
	}
	for n < len(p) {
		var m int
		werr := t.raw.Write(func(fd uintptr) bool {
			m, err = writeNow(int(fd), p[n:min(n+writeMost, len(p))])
			return err != unix.EAGAIN
		})
		if werr != nil {
			return n, werr
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}
