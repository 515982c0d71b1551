package core

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Btrfs is a mounted btrfs on one device.
type Btrfs struct{ Target string }

// btrfsDevInfo is BTRFS_IOC_DEV_INFO of linux/btrfs.h, and its argument's
// layout: device number, UUID, bytes used, bytes in all, and at the end the
// device's path.
const (
	btrfsDevInfo     = 0xd000941e
	btrfsDevInfoSize = 4096
	btrfsDevTotal    = 8 + 16 + 8
	btrfsDevPath     = 4096 - 1024
)

// device asks for the file system's size on its device and the device's path.
func (b Btrfs) device() (size uint64, path string, err error) {
	f, err := os.Open(b.Target)
	if err != nil {
		return 0, "", fmt.Errorf("cannot open the file system: %w", err)
	}
	defer f.Close()
	// Devices are counted from 1; after a replacement there is no first.
	for id := uint64(1); id <= 16; id++ {
		var arg [btrfsDevInfoSize]byte
		binary.NativeEndian.PutUint64(arg[:], id)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), btrfsDevInfo, uintptr(unsafe.Pointer(&arg)))
		if errno == 0 {
			return binary.NativeEndian.Uint64(arg[btrfsDevTotal:]), unix.ByteSliceToString(arg[btrfsDevPath:]), nil
		}
		err = errno
		if errno != unix.ENODEV {
			break
		}
	}
	return 0, "", fmt.Errorf("%s tells nothing of its device, it may be no btrfs: %w", b.Target, err)
}

// Size is how much of its device the file system spans.
func (b Btrfs) Size() (uint64, error) {
	size, _, err := b.device()
	return size, err
}

// DeviceSize is how large the device is now.
func (b Btrfs) DeviceSize() (uint64, error) {
	_, path, err := b.device()
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot look at the disk: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("cannot tell the size of %s: %w", path, err)
	}
	return uint64(size), nil
}

// Resize makes the file system span so many bytes of its device. When it is
// made smaller, data is moved, which takes its time. The error is ENOSPC when
// there is no room to move it.
func (b Btrfs) Resize(ctx context.Context, t *Table, size uint64) error {
	err := t.Run(ctx, "btrfs", "filesystem", "resize", strconv.FormatUint(size, 10), b.Target)
	if err != nil && strings.Contains(err.Error(), "No space left on device") {
		return fmt.Errorf("%w: %w", unix.ENOSPC, err)
	}
	return err
}

// ReleaseEmpty gives up the data chunks in which nothing is any more. The
// file system does so itself after a while; a full one may refuse to be told.
func (b Btrfs) ReleaseEmpty(ctx context.Context, t *Table) error {
	if err := t.Run(ctx, "btrfs", "filesystem", "sync", b.Target); err != nil {
		return err
	}
	return t.Run(ctx, "btrfs", "balance", "start", "-dusage=0", b.Target)
}

var minDevSize = regexp.MustCompile(`^([0-9]+) bytes\b`)

// btrfsLeast is the smallest size to which the kernel resizes one.
const btrfsLeast = 256 << 20

// MinSize is how small the file system can be made.
func (b Btrfs) MinSize(ctx context.Context, t *Table) (uint64, error) {
	size, err := b.Size()
	if err != nil {
		return 0, err
	}
	// Empty chunks would count; if they stay, the answer is only less good.
	if err := b.ReleaseEmpty(ctx, t); err != nil && ctx.Err() != nil {
		return 0, err
	}
	out, err := t.Output(ctx, "btrfs", "inspect-internal", "min-dev-size", b.Target)
	if err != nil {
		return 0, err
	}
	// "268435456 bytes (256.00MiB)"
	m := minDevSize.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("btrfs inspect-internal min-dev-size says %q, which is no size", out)
	}
	least, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("btrfs inspect-internal min-dev-size says %q: %w", out, err)
	}
	return min(max(least, btrfsLeast), size), nil
}
