package core

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

func TestParseMountinfo(t *testing.T) {
	const text = `22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/lower
36 22 253:1 /sub /mnt/a\040b\134c rw,noatime master:1 shared:2 - btrfs /dev/vdb rw
37 22 0:40 / /mnt/none rw - 9p
`
	got, err := parseMountinfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mounted{
		{Target: "/", Type: "overlay", Source: "overlay", Device: unix.Mkdev(0, 20)},
		{Target: `/mnt/a b\c`, Type: "btrfs", Source: "/dev/vdb", Device: unix.Mkdev(253, 1)},
		{Target: "/mnt/none", Type: "9p", Device: unix.Mkdev(0, 40)},
	}
	if len(got) != len(want) {
		t.Fatalf("%d mounts, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("mount %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	for _, bad := range []string{"x", "1 2 3:4 / - ext4", "1 2 3:4 / /mnt rw - "} {
		if _, err := parseMountinfo(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(`36 22 253:1 /sub /mnt/a\040b rw - btrfs /dev/vdb rw`)
	f.Add(`1 2 3 4 \ - x`)
	f.Fuzz(func(t *testing.T, text string) { parseMountinfo(strings.NewReader(text)) })
}

func TestMountSaysWhatAndWhy(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	dir := coretest.Dir(t)
	err := MountPoint{Source: "x", Target: dir, Type: "nosuchfs"}.Mount()
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "cannot mount x (nosuchfs) at "+dir) ||
		!strings.Contains(err.Error(), "this kernel does not know the file system type") {
		t.Errorf("an unknown type: %v", err)
	}
	err = MountPoint{Source: "tmpfs", Target: dir + "/none", Type: "tmpfs"}.Mount()
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing target: %v", err)
	}
	if err := (MountPoint{Source: "tmpfs", Target: dir + "/a/b", Type: "tmpfs", Options: "mode=1777"}).MakeAndMount(); err != nil {
		t.Errorf("a target to be made: %v", err)
	}
	if info, err := os.Stat(dir + "/a/b"); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("what was mounted: %v, %v", info, err)
	}
}

// What cannot be unmounted is made read-only; a real disk, because the
// superblock is what changes.
func TestUnmountMakesBusyFileSystemsReadOnly(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	device, _ := coretest.Disk(t, 32<<20)
	if err := table.Run(t.Context(), "mkfs.ext4", "-q", device); err != nil {
		t.Fatal(err)
	}
	target := coretest.Dir(t)
	if err := (MountPoint{Source: device, Target: target, Type: "ext4"}).Mount(); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := unmount(Mounted{Target: target, Type: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a busy file system: %v, want EROFS", err)
	}
	busy.Close()
	if err := unmount(Mounted{Target: target, Type: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if mounted, _, err := MountedFrom(target, device); err != nil || mounted {
		t.Errorf("still mounted: %v, %v", mounted, err)
	}
}
