package host

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// FollowTimezone calls changed whenever the machine has got another time zone,
// until ctx is done. It is for who needs nothing else of the host.
func (h Host) FollowTimezone(ctx context.Context, log *slog.Logger, changed func()) error {
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the host's time zone: %w", err)
	}
	defer files.Close()
	if err := files.Add(filepath.Dir(h.localtime())); err != nil {
		return fmt.Errorf("watch the host's time zone: %s: %w", h.localtime(), err)
	}
	zone, _ := h.Timezone()
	settled := time.NewTimer(settle) // it may have changed just before
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-files.Events:
			settled.Reset(settle)
		case err := <-files.Errors:
			log.Warn("watch the host's time zone", "err", err)
			settled.Reset(settle)
		case <-settled.C:
			if z, err := h.Timezone(); err == nil && z != zone {
				zone = z
				changed()
			}
		}
	}
}
