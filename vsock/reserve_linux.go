package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	vhostDevice = "/dev/vhost-vsock"
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
	setGuestCID = 0x4008af60
)

// ReserveCID takes a CID of the host's AF_VSOCK for a guest, and keeps it for
// as long as the file, or what it was handed on to, is open. The error is
// EADDRINUSE when another guest of the host has the CID, whoever's that is.
func ReserveCID(cid uint32) (*os.File, error) {
	f, err := os.OpenFile(vhostDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("kernel vsock: %w (load the module vhost_vsock)", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("kernel vsock: %w (the device belongs to the group kvm, which this service has to be in)", err)
	case err != nil:
		return nil, fmt.Errorf("kernel vsock: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	number := uint64(cid)
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, setGuestCID, uintptr(unsafe.Pointer(&number)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("kernel vsock: take the CID %d: %w", cid, err)
	}
	return f, nil
}
