package vmlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFile is the size of a file at which the next one begins, in bytes.
	maxFile = 4 << 20
	// files is how many there are of a log: the current one and five old ones.
	files = 6
	// turnTimeout bounds waiting for others who work on the files, all of whom
	// are quick unless the disk hangs.
	turnTimeout = 5 * time.Second
)

// ErrFlood says that a guest logs more than it may, even slowed down.
var ErrFlood = errors.New("the guest logs too much at once")

// A Log is one VM's.
type Log struct {
	store *Store
	path  string
	log   *slog.Logger
	refs  int // under store.mu

	// turn lets one at a time work on the files. What follows belongs to whose
	// turn it is.
	turn    chan struct{}
	current os.FileInfo // of the file at path when it was last seen
	lost    int         // records that could not be written
	cause   error       // of the last loss

	mu     sync.Mutex
	bucket bucket
	// missed are records whose turn did not come, refused those of a flood;
	// both are to be reported.
	missed, refused int
	// number counts the files that have been the current one, size is how
	// much of the current one is written. changed is closed by each change.
	number   uint64
	size     int64
	removals int
	changed  chan struct{}
}

// file names the files from the newest to the oldest.
func (l *Log) file(i int) string {
	if i == 0 {
		return l.path
	}
	return fmt.Sprintf("%s.%d", l.path, i)
}

func (l *Log) enter(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the log %s: %w", l.path, context.Cause(ctx))
	}
}

func (l *Log) leave() { <-l.turn }

// publish tells readers how far the current file is written; under mu.
func (l *Log) publish(size int64) {
	l.size = size
	close(l.changed)
	l.changed = make(chan struct{})
}

// Append writes records of the host's own. It fails for nobody: see the
// package's documentation.
func (l *Log) Append(ctx context.Context, records ...Record) {
	l.write(ctx, lines(records), len(records))
}

// Collect writes records of a guest, and returns when the guest may send the
// next ones, which takes a few seconds at most, or when the context is done.
// The error is ErrFlood when they were refused.
func (l *Log) Collect(ctx context.Context, records []Record) error {
	b := lines(records)
	l.mu.Lock()
	delay, ok := l.bucket.take(time.Now(), len(b))
	if !ok {
		l.refused += len(records)
	}
	l.mu.Unlock()
	// What has arrived is written though its sender may have gone.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), turnTimeout)
	defer cancel()
	if ok {
		l.write(wctx, b, len(records))
	}
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if !ok {
		return ErrFlood
	}
	return nil
}

func lines(records []Record) []byte {
	now := time.Now()
	var b []byte
	for _, r := range records {
		b = appendLine(b, r, now)
	}
	return b
}

// write appends n lines to the current file and those that follow it.
func (l *Log) write(ctx context.Context, b []byte, n int) {
	if n == 0 {
		return
	}
	if err := l.enter(ctx); err != nil {
		l.log.Warn("lines of a VM's log are lost", "lines", n, "err", err)
		l.mu.Lock()
		l.missed += n
		l.mu.Unlock()
		return
	}
	defer l.leave()
	l.mu.Lock()
	if l.missed > 0 {
		l.lost, l.missed, l.cause = l.lost+l.missed, 0, errBusy
	}
	refused := l.refused
	l.mu.Unlock()
	rest := append(l.notices(refused), b...)
	for len(rest) > 0 {
		done, err := l.writeSome(rest)
		if err != nil {
			if l.lost == 0 {
				l.log.Warn("a VM's log cannot be written, its lines are lost", "path", l.path, "err", err)
			}
			// Notices come before the n lines, and are written again.
			l.lost += min(n, bytes.Count(rest, []byte("\n")))
			l.cause = err
			return
		}
		if l.lost > 0 {
			l.log.Info("a VM's log can be written again", "path", l.path, "lost", l.lost)
		}
		l.lost, l.cause = 0, nil
		l.mu.Lock()
		l.refused -= refused
		l.mu.Unlock()
		refused = 0
		rest = rest[done:]
	}
}

// errBusy is why records are lost whose turn did not come.
var errBusy = errors.New("the disk was too slow")

// notices are the lines about lines that are not there.
func (l *Log) notices(refused int) []byte {
	now := time.Now()
	var b []byte
	if l.lost > 0 {
		b = appendLine(b, Record{Host, Warning, now, fmt.Appendf(nil, "%d records are lost, they could not be written: %v", l.lost, l.cause)}, now)
	}
	if refused > 0 {
		b = appendLine(b, Record{Host, Warning, now, fmt.Appendf(nil, "%d records were refused: %v", refused, ErrFlood)}, now)
	}
	return b
}

// writeSome writes as many of the lines as fit into one file, and returns how
// many bytes that were. On failure there are none.
func (l *Log) writeSome(b []byte) (int, error) {
	f, size, err := l.open()
	if err == nil && size+int64(min(len(b), maxFile)) > maxFile && size > 0 {
		f.Close()
		if err := l.rotate(); err != nil {
			return 0, err
		}
		f, size, err = l.open()
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if len(b) > maxFile {
		b = b[:bytes.LastIndexByte(b[:maxFile], '\n')+1]
	}
	done := len(b)
	// A crash or a full disk may have left a piece of a line.
	var last [1]byte
	if size > 0 {
		if _, err := f.ReadAt(last[:], size-1); err != nil {
			return 0, err
		}
		if last[0] != '\n' {
			b = append([]byte{'\n'}, b...)
		}
	}
	if _, err := f.Write(b); err != nil {
		// Nobody has read the piece: it is not published.
		return 0, errors.Join(err, f.Truncate(size))
	}
	l.mu.Lock()
	l.publish(size + int64(len(b)))
	l.mu.Unlock()
	return done, nil
}

// open opens the current file for writing, and makes it where there is none.
// It is not kept open: who removes it or puts another in its place is obeyed.
func (l *Log) open() (*os.File, int64, error) {
	const flags = os.O_RDWR | os.O_APPEND | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(l.path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(l.path), 0o700); err == nil {
			f, err = os.OpenFile(l.path, flags, 0o600)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	fi, err := plainFile(f)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	l.see(fi)
	return f, fi.Size(), nil
}

func plainFile(f *os.File) (os.FileInfo, error) {
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no plain file", f.Name())
	}
	return fi, err
}

// see notices a current file that is another one than before.
func (l *Log) see(fi os.FileInfo) {
	if l.current != nil && os.SameFile(l.current, fi) {
		return
	}
	l.current = fi
	l.mu.Lock()
	l.number++
	l.publish(fi.Size())
	l.mu.Unlock()
}

// rotate makes room for a new current file.
func (l *Log) rotate() error {
	for i := files - 1; i > 0; i-- {
		if err := os.Rename(l.file(i-1), l.file(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
