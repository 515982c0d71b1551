package core

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

const btrfsSize = 128 << 20

func TestMakeBtrfsOnABlankDiskOnly(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	device, file := coretest.Disk(t, btrfsSize)
	if err := MakeBtrfs(t.Context(), table, device); err != nil {
		t.Fatal(err)
	}
	target := coretest.Dir(t)
	m := MountPoint{Source: device, Target: target, Type: "btrfs", Options: "user_subvol_rm_allowed,discard"}
	if err := m.Mount(); err != nil {
		t.Fatalf("no btrfs here: %v", err)
	}
	if err := os.WriteFile(target+"/precious", []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if mounted, same, err := MountedFrom(target, device); err != nil || !mounted || !same {
		t.Errorf("MountedFrom: %v %v %v", mounted, same, err)
	}
	other, _ := coretest.Disk(t, 1<<20)
	if mounted, same, err := MountedFrom(target, other); err != nil || !mounted || same {
		t.Errorf("MountedFrom another disk: %v %v %v", mounted, same, err)
	}
	before, err := FreeBytes(target)
	if err != nil || before <= 0 || before > btrfsSize {
		t.Errorf("free: %d, %v", before, err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}

	if err := MakeBtrfs(t.Context(), table, device); err == nil || !strings.Contains(err.Error(), "holds a btrfs already") {
		t.Errorf("a disk with a btrfs: %v", err)
	}
	// Only a copy of the superblock is left: still somebody's data.
	zero(t, device, 64<<10, 4<<10)
	if has, err := HasBtrfs(device); err != nil || !has {
		t.Errorf("a btrfs without its first superblock is not recognised (%v)", err)
	}
	if err := MakeBtrfs(t.Context(), table, device); err == nil {
		t.Error("a btrfs without its first superblock was written over")
	}
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "precious") {
		t.Errorf("the data is gone (%v)", err)
	}
}

func TestMakeBtrfsRefusesOtherFileSystems(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	device, _ := coretest.Disk(t, btrfsSize)
	if err := table.Run(t.Context(), "mkfs.ext4", "-q", device); err != nil {
		t.Fatal(err)
	}
	err := MakeBtrfs(t.Context(), table, device)
	if err == nil || !strings.Contains(err.Error(), "ext4") {
		t.Errorf("a disk with ext4: %v", err)
	}
	if err := (MountPoint{Source: device, Target: coretest.Dir(t), Type: "ext4"}).Mount(); err != nil {
		t.Errorf("the ext4 is damaged: %v", err)
	}
}

func TestMakeBtrfsSaysWhatIsWrongWithTheDisk(t *testing.T) {
	if !coretest.Isolated(t, 0) {
		return
	}
	table := newTable(t)
	if err := MakeBtrfs(t.Context(), table, "/dev/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing disk: %v", err)
	}
	small, _ := coretest.Disk(t, 1<<20)
	if err := MakeBtrfs(t.Context(), table, small); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("a small disk: %v", err)
	}
}

func TestGrowBtrfs(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	device, file := coretest.Disk(t, btrfsSize)
	if err := MakeBtrfs(t.Context(), table, device); err != nil {
		t.Fatal(err)
	}
	target := coretest.Dir(t)
	if err := (MountPoint{Source: device, Target: target, Type: "btrfs"}).Mount(); err != nil {
		t.Fatalf("no btrfs here: %v", err)
	}
	before, _ := FreeBytes(target)
	if err := os.Truncate(file, 3*btrfsSize); err != nil {
		t.Fatal(err)
	}
	loop, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if _, err := unix.IoctlRetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY); err != nil {
		t.Fatal(err)
	}
	if err := GrowBtrfs(t.Context(), table, target); err != nil {
		t.Fatal(err)
	}
	if after, _ := FreeBytes(target); after < before+btrfsSize {
		t.Errorf("free before %d, after %d", before, after)
	}
}

func TestCheckBlockDevice(t *testing.T) {
	if err := CheckBlockDevice("/dev/nonexistent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing one: %v", err)
	}
	if err := CheckBlockDevice("/dev/null"); !errors.Is(err, unix.ENOTBLK) {
		t.Errorf("/dev/null: %v", err)
	}
}

func TestMountRootDiskAndOverlay(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	table := newTable(t)
	device, _ := coretest.Disk(t, 32<<20)
	content := t.TempDir()
	os.WriteFile(content+"/file", []byte("from the disk"), 0o644)
	if err := table.Run(t.Context(), "mkfs.ext4", "-q", "-d", content, device); err != nil {
		t.Fatal(err)
	}
	root := coretest.Dir(t)
	if err := MountRootDisk(device, root+"/lower", false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/lower/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("the root disk can be written to: %v", err)
	}
	if err := OverlayRoot(root+"/lower", root+"/upper", root+"/new"); err != nil {
		t.Fatal(err)
	}
	// The overlay outlives the names of its parts.
	for _, part := range []string{"/lower", "/upper"} {
		if err := unix.Unmount(root+part, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/new/file", []byte("changed"), 0o644); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(root + "/new/file"); err != nil || string(data) != "changed" {
		t.Errorf("read back %q, %v", data, err)
	}
	if err := unix.Unmount(root+"/new", 0); err != nil {
		t.Fatal(err)
	}
	if err := MountRootDisk(device, root+"/lower", true); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(root + "/lower/file"); err != nil || string(data) != "from the disk" {
		t.Errorf("the disk holds %q, %v", data, err)
	}
	if err := os.WriteFile(root+"/lower/x", nil, 0o600); err != nil {
		t.Errorf("a writable root: %v", err)
	}
}

func TestMountRootDiskSaysWhatItLookedFor(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	device, _ := coretest.Disk(t, 1<<20)
	err := MountRootDisk(device, coretest.Dir(t), false)
	if err == nil || !strings.Contains(err.Error(), device+" holds none of the file systems") {
		t.Errorf("an empty disk: %v", err)
	}
}

func TestWaitDevice(t *testing.T) {
	device, _ := coretest.Disk(t, 1<<20)
	if err := WaitDevice(t.Context(), device); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := WaitDevice(ctx, "/dev/nonexistent")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the disk /dev/nonexistent did not appear within ") || !strings.Contains(err.Error(), "s (the kernel knows") {
		t.Errorf("one that is not: %v", err)
	}
}

func TestWaitDeviceHearsOfIt(t *testing.T) {
	device, _ := coretest.Disk(t, 1<<20)
	late := t.TempDir() + "/late"
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { done <- WaitDevice(ctx, late) }()
	if err := os.Symlink(device, late); err != nil {
		t.Fatal(err)
	}
	// The kernel repeats its news of a device when it is asked to.
	uevent := "/sys/class/block/" + strings.TrimPrefix(device, "/dev/") + "/uevent"
	if err := os.WriteFile(uevent, []byte("add"), 0); err != nil {
		cancel()
		<-done
		t.Fatalf("no uevents here: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func zero(t *testing.T, path string, offset int64, length int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, length), offset); err != nil {
		t.Fatal(err)
	}
}
