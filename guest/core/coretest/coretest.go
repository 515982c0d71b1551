// Package coretest gives tests of guest code a part of a machine of their own:
// a child process in new name spaces, and disks. Only tests import it.
package coretest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const isolatedEnv = "AUBERGE_TEST_ISOLATED"

// Isolated runs the calling test once more in a process of its own, in the new
// name spaces that the CLONE_NEW* flags ask for, and returns true there. In
// the first process it reports how that went and returns false: the test then
// returns. It must be the first thing that a test without subtests of its own
// name does.
//
// A new mount name space is private, so mounts made in it end with it. In a new
// PID name space /proc is mounted anew and the test is PID 1.
func Isolated(t *testing.T, flags uintptr) bool {
	t.Helper()
	if os.Getenv(isolatedEnv) == t.Name() {
		settleIn(t, flags)
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root to make name spaces and mounts")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
	// The race detector would otherwise sleep for a second at the end.
	cmd.Env = append(os.Environ(), isolatedEnv+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in a process of its own: %v", err)
	}
	return false
}

func settleIn(t *testing.T, flags uintptr) {
	t.Helper()
	if flags&unix.CLONE_NEWNS == 0 {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("making the mounts private: %v", err)
	}
	if flags&unix.CLONE_NEWPID == 0 {
		return
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatalf("mounting /proc: %v", err)
	}
}

// Subreaper makes this process inherit the orphans among its descendants, as
// PID 1 does.
func Subreaper(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
}

// Dir returns an empty directory to mount things in. Whatever is mounted below it
// is unmounted before the directory is removed: to remove what lies beyond a
// mount point would reach out of the test, for a mount name space separates
// mounts and not what is in them. For the same reason tests never mount
// devtmpfs, sysfs or cgroup2, of which a machine has but one.
func Dir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		below := mountsBelow(dir)
		for _, target := range slices.Backward(below) {
			unix.Unmount(target, unix.MNT_DETACH)
		}
		if left := mountsBelow(dir); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "coretest: %v stay mounted: the test ends here, before they are emptied\n", left)
			os.Exit(1)
		}
	})
	return dir
}

// mountsBelow lists the mount points at and below dir, whose name needs no
// escapes.
func mountsBelow(dir string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		fmt.Fprintln(os.Stderr, "coretest:", err)
		os.Exit(1)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			list = append(list, fields[4])
		}
	}
	return list
}

// Disk returns the path of a block device of this size, filled with zeros, and
// that of the file behind it. The device goes when the test ends and nothing
// uses it any more.
func Disk(t *testing.T, size int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	backing, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	if err := backing.Truncate(size); err != nil {
		t.Fatal(err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("no loop devices here: %v", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("no loop devices here: %v", err)
		}
		device = "/dev/loop" + strconv.Itoa(n)
		loop, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			t.Fatalf("no loop devices here: %v", err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			// Autoclear counts users: the test is one until it ends.
			t.Cleanup(func() { loop.Close() })
			return device, file
		}
		loop.Close()
		// Another process was faster.
		if !errors.Is(err, unix.EBUSY) {
			t.Fatalf("setting up %s: %v", device, err)
		}
	}
}
