package keyfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotRegular says that a file is a device, a pipe, a directory.
var ErrNotRegular = errors.New("not a regular file")

// ErrTooLarge says that a file is larger than it may be.
var ErrTooLarge = errors.New("file too large")

// Read returns a whole regular file of at most so many bytes. It never waits
// for another process, and asks for no memory before it knows the size.
func Read(path string, most int64) ([]byte, os.FileInfo, error) {
	// Opening a device can have effects: look first.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := fits(path, info, most); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	// It may be another file by now.
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if err := fits(path, info, most); err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > most {
		return nil, nil, fmt.Errorf("read %s: %w: it grew beyond %d bytes", path, ErrTooLarge, most)
	}
	return data, info, nil
}

func fits(path string, info os.FileInfo, most int64) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("read %s: %w", path, ErrNotRegular)
	case info.Size() > most:
		return fmt.Errorf("read %s: %w: %d bytes, where %d are read at most", path, ErrTooLarge, info.Size(), most)
	}
	return nil
}
