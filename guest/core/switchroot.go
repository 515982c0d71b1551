package core

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SwitchRoot makes newRoot the root of the file tree, taking the mounts of
// EarlyMounts along, and deletes the initramfs, which otherwise stays in memory
// for as long as the machine runs, but for the directory keep, which is mounted
// in the new root.
func SwitchRoot(newRoot, keep string) error {
	for _, m := range EarlyMounts {
		target := filepath.Join(newRoot, m.Target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.Target, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot move %s to the new root: %w", m.Target, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := emptyInitramfs(keep); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the new root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot change to the new root: %w", err)
	}
	return os.Chdir("/")
}

// emptyInitramfs deletes what is on the root file system itself, and touches
// nothing else: neither a root that is not in memory nor what is mounted in it.
func emptyInitramfs(keep string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("the root file system is no initramfs (type %#x)", fs.Type)
	}
	var st unix.Stat_t
	if err := unix.Lstat("/", &st); err != nil {
		return err
	}
	removeWithin("/", uint64(st.Dev), keep)
	return nil
}

// removeWithin deletes the content of dir as far as it lies on device and not
// in keep. What cannot be deleted costs memory and nothing else, so errors do
// not matter.
func removeWithin(dir string, device uint64, keep string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if path == keep || unix.Lstat(path, &st) != nil || uint64(st.Dev) != device {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			removeWithin(path, device, keep)
		}
		os.Remove(path)
	}
}
