package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// btrfsSupers are the offsets of a btrfs superblock and its copies.
var btrfsSupers = [...]int64{64 << 10, 64 << 20, 256 << 30}

// btrfsMagic lies 64 bytes into each superblock.
var (
	btrfsMagic       = []byte("_BHRfS_M")
	btrfsMagicOffset = int64(64)
)

// HasBtrfs tells whether a device holds a btrfs or what is left of one: a
// single copy of its superblock is enough to make the rest worth saving.
func HasBtrfs(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, fmt.Errorf("cannot read the disk: %w", err)
	}
	defer f.Close()
	magic := make([]byte, len(btrfsMagic))
	for _, offset := range btrfsSupers {
		n, err := f.ReadAt(magic, offset+btrfsMagicOffset)
		if n == len(magic) && bytes.Equal(magic, btrfsMagic) {
			return true, nil
		}
		// A disk may end before the copies.
		if err != nil && n == 0 && offset == btrfsSupers[0] {
			return false, fmt.Errorf("cannot read the disk: %w", err)
		}
	}
	return false, nil
}

// MakeBtrfs puts a btrfs on a device that holds no file system. Whatever file
// system or partition table it does hold makes it fail and is left untouched.
func MakeBtrfs(ctx context.Context, t *Table, device string) error {
	has, err := HasBtrfs(device)
	if err != nil {
		return err
	}
	if has {
		return fmt.Errorf("%s holds a btrfs already, which is not written over", device)
	}
	// Without --force it refuses everything that libblkid knows.
	return t.Run(ctx, "mkfs.btrfs", "--quiet", device)
}

// GrowBtrfs makes the file system mounted at target as large as its device.
func GrowBtrfs(ctx context.Context, t *Table, target string) error {
	return t.Run(ctx, "btrfs", "filesystem", "resize", "max", target)
}

// FreeBytes returns how much an ordinary user can still write below path.
func FreeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("cannot tell the free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// MountedFrom tells whether a file system is mounted at target, and whether it
// came from the block device at device.
func MountedFrom(target, device string) (mounted, same bool, err error) {
	mounts, err := Mounts()
	if err != nil {
		return false, false, err
	}
	for _, m := range mounts {
		if m.Target != target {
			continue
		}
		// The last one at a target is the one seen there.
		mounted, same = true, sameDevice(m.Source, device)
	}
	return mounted, same, nil
}

func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Rdev == y.Rdev && x.Rdev != 0
}

// CheckBlockDevice refuses what is not a block device.
func CheckBlockDevice(path string) error {
	if _, err := os.Stat(path); err != nil {
		return errors.Unwrap(err)
	}
	if !isBlockDevice(path) {
		return unix.ENOTBLK
	}
	return nil
}
