package core

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SetClock sets the machine's time.
func SetClock(t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("cannot set the clock to %s: %w", t, err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock to %s: %w", t, err)
	}
	return nil
}
