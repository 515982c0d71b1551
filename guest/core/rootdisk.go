package core

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rootTypes are the file systems a root disk may hold.
var rootTypes = []string{"squashfs", "ext4", "btrfs", "erofs", "xfs"}

// WaitDevice waits until the block device at path exists. It hears of devices
// from the kernel's uevents.
func WaitDevice(ctx context.Context, path string) error {
	// Listen before looking, so that nothing slips between.
	events, err := openUevents()
	if err != nil {
		return err
	}
	defer unix.Close(events)
	start := time.Now()
	for !isBlockDevice(path) {
		if err := nextUevent(ctx, events); err != nil {
			waited := time.Since(start).Round(time.Second)
			return fmt.Errorf("the disk %s did not appear within %v (%s): %w", path, waited, describeDisks(), err)
		}
	}
	return nil
}

func openUevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, fmt.Errorf("cannot listen for devices: %w", err)
	}
	const kernelEvents = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("cannot listen for devices: %w", err)
	}
	return fd, nil
}

// nextUevent returns when anything happened to any device; what it was is
// seen by looking. Events lost to a full buffer count as well.
func nextUevent(ctx context.Context, fd int) error {
	timeout := -1
	if deadline, ok := ctx.Deadline(); ok {
		timeout = int(max(time.Until(deadline), 0).Milliseconds())
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
	switch {
	case errors.Is(err, unix.EINTR):
		return ctx.Err()
	case err != nil:
		return err
	case n == 0:
		return context.DeadlineExceeded
	}
	var buf [8 << 10]byte
	unix.Read(fd, buf[:])
	return nil
}

func isBlockDevice(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
}

// describeDisks says which disks there are, for an error.
func describeDisks() string {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "loop") && !strings.HasPrefix(e.Name(), "ram") {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return "the kernel knows no disk at all: it may lack a driver for virtio disks"
	}
	return "the kernel knows " + strings.Join(names, ", ")
}

// MountRootDisk mounts the file system of a root disk at target, trying the
// types that may be one in the kernel's own order.
func MountRootDisk(device, target string, writable bool) error {
	types, err := knownTypes(rootTypes)
	if err != nil {
		return err
	}
	if len(types) == 0 {
		return fmt.Errorf("this kernel knows none of the file systems %s", strings.Join(rootTypes, ", "))
	}
	flags := uintptr(unix.MS_SILENT)
	if !writable {
		flags |= unix.MS_RDONLY
	}
	var errs []error
	for _, fstype := range types {
		err := MountPoint{Source: device, Target: target, Type: fstype, Flags: flags}.MakeAndMount()
		if err == nil {
			return checkWritable(target, fstype, writable)
		}
		switch {
		case errors.Is(err, unix.EINVAL): // a wrong type
		case writable && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS)):
			return fmt.Errorf("the root file system is asked for read-write, but %s is a read-only disk: %w", device, err)
		default:
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return fmt.Errorf("the disk %s holds none of the file systems %s", device, strings.Join(types, ", "))
}

// checkWritable finds out what squashfs and erofs keep to themselves: they
// mount read-only whatever they are asked.
func checkWritable(target, fstype string, writable bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return fmt.Errorf("cannot look at %s: %w", target, err)
	}
	if writable && st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("the root file system is asked for read-write, but %s is always read-only", fstype)
	}
	return nil
}

// knownTypes returns those of the wanted types that the kernel has, in the
// kernel's order.
func knownTypes(wanted []string) ([]string, error) {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return nil, fmt.Errorf("cannot list the kernel's file systems: %w", err)
	}
	var types []string
	for line := range strings.Lines(string(data)) {
		// "nodev\tproc" or "\text4"
		flag, name, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if flag == "" && slices.Contains(wanted, name) {
			types = append(types, name)
		}
	}
	return types, nil
}

// OverlayRoot mounts at target the file system of lower with a writable layer
// in memory above it. The parts are kept at lower and upper.
func OverlayRoot(lower, upper, target string) error {
	memory := MountPoint{Source: "tmpfs", Target: upper, Type: "tmpfs", Options: "mode=0755"}
	if err := memory.MakeAndMount(); err != nil {
		return err
	}
	for _, dir := range []string{"/data", "/work"} {
		if err := os.Mkdir(upper+dir, 0o755); err != nil {
			return err
		}
	}
	return MountPoint{
		Source: "overlay", Target: target, Type: "overlay",
		Options: "lowerdir=" + lower + ",upperdir=" + upper + "/data,workdir=" + upper + "/work",
	}.MakeAndMount()
}
