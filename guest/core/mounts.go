package core

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A MountPoint is one file system to mount.
type MountPoint struct {
	Source, Target, Type string
	Flags                uintptr // MS_*
	Options              string
}

const nosuidNodevNoexec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// EarlyMounts are what an agent needs before it can do anything.
var EarlyMounts = []MountPoint{
	{Source: "proc", Target: "/proc", Type: "proc", Flags: nosuidNodevNoexec},
	{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: nosuidNodevNoexec},
	{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Options: "mode=0755"},
}

// SystemMounts are what programs expect of a Linux system beyond EarlyMounts
// and /run.
var SystemMounts = []MountPoint{
	{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Options: "ptmxmode=0666,mode=0620,gid=5"},
	{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Options: "mode=1777"},
	{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: nosuidNodevNoexec},
	{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Options: "mode=1777"},
	{Source: "cgroup2", Target: "/sys/fs/cgroup", Type: "cgroup2", Flags: nosuidNodevNoexec, Options: "nsdelegate"},
}

// MakeAndMount mounts a file system, making the target when it is missing.
func (m MountPoint) MakeAndMount() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return fmt.Errorf("cannot make the mount point %s: %w", m.Target, err)
	}
	return m.Mount()
}

// Mount mounts a file system at a target that exists.
func (m MountPoint) Mount() error {
	if err := unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Options); err != nil {
		return fmt.Errorf("cannot mount %s (%s) at %s: %w", m.Source, m.Type, m.Target, explainMount(err))
	}
	return nil
}

// explainMount adds what the bare error hides from people.
func explainMount(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: this kernel does not know the file system type", err)
	}
	return err
}

// A Mounted is one line of mountinfo (proc_pid_mountinfo(5)).
type Mounted struct {
	Target, Type, Source string
	Device               uint64 // of the file system, as in st_dev
}

// Mounts lists what this process sees mounted, oldest first.
func Mounts() ([]Mounted, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot list the mounts: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]Mounted, error) {
	var list []Mounted
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/sda rw
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 1 {
			return nil, fmt.Errorf("mountinfo has a line that is none: %q", lines.Text())
		}
		m := Mounted{Target: unescapeMount(l[4]), Type: r[0]}
		if len(r) > 1 {
			m.Source = unescapeMount(r[1])
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(l[2], "%d:%d", &major, &minor); err == nil {
			m.Device = unix.Mkdev(major, minor)
		}
		list = append(list, m)
	}
	return list, lines.Err()
}

// unescapeMount undoes the octal escapes of space, tab, newline, backslash.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// nothingToLose are the file systems that hold no data beyond this boot.
var nothingToLose = []string{
	"proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "ramfs", "rootfs", "mqueue", "cgroup", "cgroup2",
	"securityfs", "debugfs", "tracefs", "bpf", "pstore", "hugetlbfs", "configfs", "binfmt_misc",
	"nsfs", "fusectl",
}

// remote are the file systems whose other end may be gone or mute, for which
// nothing may wait.
var remote = []string{"9p", "virtiofs", "fuse", "nfs", "nfs4", "cifs"}

// unmountAll unmounts all file systems that could lose something, newest
// first, makes those read-only that will not go, and writes everything out.
func unmountAll(log *slog.Logger) {
	mounts, err := Mounts()
	if err != nil {
		log.Error("file systems are not unmounted", "err", err)
	}
	for _, m := range slices.Backward(mounts) {
		if slices.Contains(nothingToLose, m.Type) {
			continue
		}
		if err := unmount(m); err != nil {
			log.Error("a file system stays mounted", "target", m.Target, "type", m.Type, "err", err)
		}
	}
	unix.Sync()
}

func unmount(m Mounted) error {
	if slices.Contains(remote, m.Type) || strings.HasPrefix(m.Type, "fuse.") {
		return unix.Unmount(m.Target, unix.MNT_FORCE|unix.MNT_DETACH)
	}
	err := unix.Unmount(m.Target, unix.UMOUNT_NOFOLLOW)
	if err == nil {
		return nil
	}
	// The root itself always ends here.
	if roErr := unix.Mount("", m.Target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); roErr != nil {
		return fmt.Errorf("%w, nor can it be made read-only: %w", err, roErr)
	}
	return nil
}
