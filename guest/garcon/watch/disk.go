package watch

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lowSpace is when a disk is nearly full, in bytes.
	lowSpace = 1 << 30
	// diskInterval is between looks at it.
	diskInterval = 2 * time.Minute
)

// A Disk watches the room on a file system.
type Disk struct {
	path   string
	report func(free uint64)
	log    *slog.Logger
	ticks  <-chan time.Time // a ticker's, if nil
	free   func(path string) (uint64, error)
}

// NewDisk watches the file system of a path. report, which must not wait, is
// called at every look while there is little room.
func NewDisk(path string, report func(free uint64), log *slog.Logger) *Disk {
	return &Disk{path: path, report: report, log: log, free: Free}
}

// Free is the room for ordinary users on the file system of a path, in bytes.
func Free(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}

// Run looks until ctx is done, the first time at once.
func (d *Disk) Run(ctx context.Context) {
	ticks := d.ticks
	if ticks == nil {
		t := time.NewTicker(diskInterval)
		defer t.Stop()
		ticks = t.C
	}
	for {
		free, err := d.free(d.path)
		switch {
		case err != nil:
			d.log.Warn("the room on the disk is not known", "path", d.path, "err", err)
		case free < lowSpace:
			d.report(free)
		}
		select {
		case <-ticks:
		case <-ctx.Done():
			return
		}
	}
}
