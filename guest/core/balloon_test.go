package core

import (
	"errors"
	"os"
	"testing"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

func TestBalloon(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	const mib = 1 << 20
	device, file := coretest.Disk(t, 1<<30)
	if err := MakeBtrfs(t.Context(), newTable(t), device); err != nil {
		t.Fatal(err)
	}
	target := coretest.Dir(t)
	if err := (MountPoint{Source: device, Target: target, Type: "btrfs", Options: "discard"}).Mount(); err != nil {
		t.Fatal(err)
	}
	b := Balloon{Path: target + "/balloon"}
	free := func() int64 {
		t.Helper()
		unix.Sync()
		n, err := FreeBytes(target)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	whole := free()
	adjust := func(to int64) int64 {
		t.Helper()
		size, err := b.Adjust(to)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(b.Path); err != nil || info.Size() != size {
			t.Errorf("it says %d, its file %v, %v", size, info.Size(), err)
		}
		return size
	}
	if size := adjust(10 << 30); size != 0 {
		t.Errorf("with room for everything the balloon has %d bytes", size)
	}
	near := func(want int64) {
		t.Helper()
		// What a btrfs tells depends on how it is cut into chunks by now.
		if got := free(); got < want-64*mib || got > want+64*mib {
			t.Errorf("%d bytes are free, want about %d", got, want)
		}
	}
	adjust(300 * mib)
	near(300 * mib)
	adjust(500 * mib)
	near(500 * mib)
	adjust(200 * mib)
	near(200 * mib)
	adjust(0)
	near(balloonReserve)
	// A balloon holds space of the file system, not of the disk beneath it.
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Blocks*512 > 64*mib {
		t.Errorf("the disk has %d bytes, %v", st.Blocks*512, err)
	}
	adjust(10 << 30)
	near(whole)
	// Somebody's holes hold nothing and do not count.
	if err := os.Truncate(b.Path, 400*mib); err != nil {
		t.Fatal(err)
	}
	adjust(300 * mib)
	near(300 * mib)
	if err := errors.Join(b.Remove(), b.Remove()); err != nil {
		t.Fatal(err)
	}
	near(whole)
	if err := unix.Mkfifo(b.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adjust(0); err == nil {
		t.Error("a FIFO is no balloon")
	}
	os.Remove(b.Path)
	if err := os.Symlink("/etc/passwd", b.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adjust(0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v", err)
	}
}

// What the file system says it has and what it gives are not the same: the
// balloon takes what there is and says so.
func TestBalloonThatDoesNotFit(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	target := coretest.Dir(t)
	if err := (MountPoint{Source: "tmpfs", Target: target, Type: "tmpfs", Options: "size=512m"}).Mount(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(target + "/balloon")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := Balloon{Path: f.Name()}.inflate(f, 0, 1<<30)
	if !errors.Is(err, ErrBalloonFull) || size < 256<<20 || size > 512<<20 {
		t.Errorf("%d, %v", size, err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != size {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}
