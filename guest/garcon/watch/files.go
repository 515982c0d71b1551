// Package watch tells of changes that the host wants to know of: in
// directories of the user's home, and of the room on the disk.
package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxWatches bounds the watches, maxPath the path of one.
	maxWatches = 128
	maxPath    = 4096
	// coalesce is how long changes are gathered.
	coalesce = 3 * time.Second
)

const changes = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// gone is the number of a watch whose directory has been removed.
const gone = -1

// Files watches directories. It speaks to inotify itself, because two paths may
// lead to one directory, and the kernel has one watch for it.
type Files struct {
	home     string
	report   func(path string)
	log      *slog.Logger
	coalesce time.Duration
	inotify  *os.File
	dirty    chan struct{}

	mu      sync.Mutex
	watches map[string]int // by the path that was asked for
	changed map[string]bool
}

// NewFiles returns no watches yet, of directories in home. report, which must
// not wait, gets the paths that were asked for.
func NewFiles(home string, report func(path string), log *slog.Logger) (*Files, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch files: inotify: %w", err)
	}
	return &Files{
		home: home, report: report, log: log, coalesce: coalesce,
		inotify: os.NewFile(uintptr(fd), "inotify"), dirty: make(chan struct{}, 1),
		watches: map[string]int{}, changed: map[string]bool{},
	}, nil
}

// check refuses what is no way down from home.
func check(path string) error {
	switch {
	case len(path) > maxPath:
		return fmt.Errorf("the path has %d bytes, more than %d", len(path), maxPath)
	case filepath.IsAbs(path), strings.ContainsRune(path, 0):
		return fmt.Errorf("%q is not a path in the user's home directory", path)
	case slices.Contains(strings.Split(path, "/"), ".."):
		return fmt.Errorf("%q leads out of directories by ..", path)
	}
	return nil
}

// Add watches a directory, given relative to home. Once is enough.
func (f *Files) Add(path string) error {
	if err := check(path); err != nil {
		return err
	}
	dir, err := f.open(path)
	if err != nil {
		return fmt.Errorf("watch %q in %s: %w", path, f.home, err)
	}
	defer unix.Close(dir)
	f.mu.Lock()
	defer f.mu.Unlock()
	old, known := f.watches[path]
	if !known && len(f.watches) >= maxWatches {
		return fmt.Errorf("%d directories are watched already, the most that may be", maxWatches)
	}
	w, err := f.add(dir)
	if err != nil {
		return fmt.Errorf("watch %q in %s: %w", path, f.home, err)
	}
	f.watches[path] = w
	if known && old != w { // another directory has its name now
		f.forget(old)
	}
	return nil
}

// open finds the directory without leaving home, also by links.
func (f *Files) open(path string) (int, error) {
	home, err := unix.Open(f.home, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(home)
	return unix.Openat2(home, filepath.Clean(path), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func (f *Files) add(dir int) (w int, err error) {
	err = f.control(func(fd int) error {
		w, err = unix.InotifyAddWatch(fd, "/proc/self/fd/"+strconv.Itoa(dir), changes)
		if errors.Is(err, unix.ENOSPC) {
			return errors.New("the system has no more watches (sysctl fs.inotify.max_user_watches)")
		}
		return err
	})
	return w, err
}

func (f *Files) control(do func(fd int) error) error {
	raw, err := f.inotify.SyscallConn()
	if err != nil {
		return err
	}
	var res error
	if err := raw.Control(func(fd uintptr) { res = do(int(fd)) }); err != nil {
		return err
	}
	return res
}

// Remove ends a watch.
func (f *Files) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.watches[path]
	if !ok {
		return fmt.Errorf("%q is not watched", path)
	}
	delete(f.watches, path)
	delete(f.changed, path)
	f.forget(w)
	return nil
}

// forget ends the kernel's watch if no path needs it any more.
func (f *Files) forget(w int) {
	if w == gone {
		return
	}
	for _, other := range f.watches {
		if other == w {
			return
		}
	}
	f.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(w))
		return err
	})
}

// Paths are those that are watched.
func (f *Files) Paths() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for p := range f.watches {
		list = append(list, p)
	}
	slices.Sort(list)
	return list
}

// Run reports changes until ctx is done, and ends all watches then.
func (f *Files) Run(ctx context.Context) {
	var reader sync.WaitGroup
	reader.Go(f.read)
	defer reader.Wait()
	defer f.inotify.Close()
	for {
		select {
		case <-f.dirty:
		case <-ctx.Done():
			return
		}
		t := time.NewTimer(f.coalesce)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		for _, path := range f.take() {
			f.report(path)
		}
	}
}

func (f *Files) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for p := range f.changed {
		list = append(list, p)
	}
	clear(f.changed)
	slices.Sort(list)
	return list
}

// read takes what the kernel says until the descriptor is closed.
func (f *Files) read() {
	buf := make([]byte, 16<<10)
	for {
		n, err := f.inotify.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				f.log.Error("files are watched no more", "err", err)
			}
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			w := int(int32(binary.NativeEndian.Uint32(b)))
			mask := binary.NativeEndian.Uint32(b[4:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
			f.mark(w, mask)
		}
	}
}

func (f *Files) mark(w int, mask uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, watch := range f.watches {
		// When events were lost, anything may have changed.
		if watch != w && mask&unix.IN_Q_OVERFLOW == 0 {
			continue
		}
		f.changed[path] = true
		if mask&unix.IN_IGNORED != 0 {
			f.watches[path] = gone // the path stays the asker's, to be removed or added again
		}
	}
	if len(f.changed) > 0 {
		select {
		case f.dirty <- struct{}{}:
		default:
		}
	}
}
