package vmlog

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// Copy writes what there was to w and then, with follow, what comes, until the
// context is done or the log is removed. It writes whole lines.
func (r *Reader) Copy(ctx context.Context, w io.Writer, follow bool) error {
	for i, p := range r.parts {
		if err := p.copy(w); err != nil {
			return err
		}
		if i < len(r.parts)-1 || !follow {
			p.f.Close()
		}
	}
	if !follow {
		return nil
	}
	// From here there is one file, read as far as it went.
	r.parts = r.parts[len(r.parts)-1:]
	p := &r.parts[0]
	for {
		p.from = p.to
		l := r.log
		l.mu.Lock()
		number, size, removals, changed := l.number, l.size, l.removals, l.changed
		l.mu.Unlock()
		switch {
		case removals != r.removals:
			return nil
		case number == r.number && size > p.to:
			p.to = size
		case number != r.number:
			// The file is complete. What there is to the end of it comes first.
			fi, err := p.f.Stat()
			if err != nil {
				return err
			}
			if p.to = fi.Size(); p.to > p.from {
				break
			}
			err = r.next(ctx, w)
			if err == nil {
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			fallthrough // the next one is gone, or not there yet
		default:
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := p.copy(w); err != nil {
			return err
		}
	}
}

// next goes on to the file that came after the one that was read.
func (r *Reader) next(ctx context.Context, w io.Writer) error {
	f, skipped, err := r.openNext(ctx)
	if err != nil {
		return err
	}
	r.parts[0].f.Close()
	r.parts[0] = part{f: f}
	if skipped {
		now := time.Now()
		_, err = w.Write(appendLine(nil, Record{Host, Notice, now,
			[]byte("lines are missing here: this reader was too slow, or the file was taken away")}, now))
	}
	return err
}

func (r *Reader) openNext(ctx context.Context) (f *os.File, skipped bool, err error) {
	l := r.log
	if err := l.enter(ctx); err != nil {
		return nil, false, err
	}
	defer l.leave()
	fi, err := r.parts[0].f.Stat()
	if err != nil {
		return nil, false, err
	}
	l.mu.Lock()
	number := l.number
	l.mu.Unlock()
	i := l.place(fi) - 1
	if i < 0 {
		skipped, i = true, 0
		if number-r.number >= files {
			i = l.oldest()
		}
	}
	if f, _, err = openToRead(l.file(i)); err != nil {
		return nil, false, err
	}
	r.number = number - uint64(i)
	return f, skipped, nil
}

// place says which of the old files a file is, zero when it is none.
func (l *Log) place(file os.FileInfo) int {
	for i := 1; i < files; i++ {
		if fi, err := os.Lstat(l.file(i)); err == nil && os.SameFile(fi, file) {
			return i
		}
	}
	return 0
}

func (l *Log) oldest() int {
	for i := files - 1; i > 0; i-- {
		if _, err := os.Lstat(l.file(i)); err == nil {
			return i
		}
	}
	return 0
}
