package core

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// balloonReserve is what a balloon always leaves free: a file system with
	// nothing left stops working for its owner.
	balloonReserve = 64 << 20
	// balloonStep is allocated at a time, so that a file system that turns out
	// to have less than it said still gives what it has.
	balloonStep = 128 << 20
)

// ErrBalloonFull says that a balloon could not be made as large as asked.
var ErrBalloonFull = errors.New("the file system has no room for a larger balloon")

// A Balloon is a file that holds space which its file system must not give to
// anyone, because the disk beneath it has not got it. Nothing is written into
// it, so it takes nothing of that disk.
type Balloon struct{ Path string }

// Adjust makes the balloon as large as it must be for about free bytes to
// stay available in its file system, and returns its size.
func (b Balloon) Adjust(free int64) (int64, error) {
	f, err := os.OpenFile(b.Path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return 0, fmt.Errorf("cannot open the balloon: %w", err)
	}
	defer f.Close()
	fd := int(f.Fd())
	size, err := allocated(f)
	if err != nil {
		return 0, err
	}
	// Btrfs counts what was allocated or freed when it commits, which may be
	// half a minute later.
	unix.Syncfs(fd)
	defer unix.Syncfs(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return size, fmt.Errorf("cannot tell the free space: %w", err)
	}
	want := size + int64(fs.Bavail)*fs.Bsize - max(free, balloonReserve)
	want = max(want, 0) / fs.Bsize * fs.Bsize
	if want <= size {
		if err := f.Truncate(want); err != nil {
			return size, fmt.Errorf("cannot deflate the balloon: %w", err)
		}
		return want, nil
	}
	return b.inflate(f, size, want)
}

func (b Balloon) inflate(f *os.File, size, want int64) (int64, error) {
	for size < want {
		step := min(balloonStep, want-size)
		err := unix.Fallocate(int(f.Fd()), 0, size, step)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			f.Truncate(size)
			return size, fmt.Errorf("%w: it has %d bytes of %d: %w", ErrBalloonFull, size, want, err)
		}
		size += step
	}
	return size, nil
}

// Remove gives everything back.
func (b Balloon) Remove() error {
	if err := os.Remove(b.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove the balloon: %w", err)
	}
	return nil
}

// allocated returns a file's size after cutting off what holds no space.
func allocated(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot look at the balloon: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%s is no file that could be a balloon", f.Name())
	}
	if size := st.Blocks * 512; size < st.Size {
		// Somebody has meddled with it: holes hold nothing.
		if err := f.Truncate(0); err != nil {
			return 0, fmt.Errorf("cannot deflate the balloon: %w", err)
		}
		return 0, nil
	}
	return st.Size, nil
}
