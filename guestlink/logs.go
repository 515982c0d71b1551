package guestlink

import (
	"context"
	"time"
)

// A LogRecord is one record of a guest's log as the guest says it; nothing
// about it is checked.
type LogRecord struct {
	// Severity is one of syslog(3) and one higher, since zero stands for none.
	Severity int
	Time     time.Time // zero when the guest gives none
	Content  []byte
}

// A LogSink takes records of one guest, of its kernel or of its programs, and
// returns when the guest may send more or the context is done. An error refuses
// them.
type LogSink func(ctx context.Context, kernel bool, records []LogRecord) error
