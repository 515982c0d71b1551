package vmlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A part is what is to be read of one file.
type part struct {
	f        *os.File
	from, to int64
}

func (p part) copy(w io.Writer) error {
	_, err := io.Copy(w, io.NewSectionReader(p.f, p.from, p.to-p.from))
	return err
}

// A Reader reads what was in a log when it was made, and follows the log from
// there.
type Reader struct {
	log   *Log
	parts []part // oldest first, at least one
	// number is that of the last part's file, removals the log's.
	number   uint64
	removals int
}

// Reader opens the log for reading. The error is fs.ErrNotExist when nothing
// was ever written. With lines above zero, only so many of the last are read.
func (l *Log) Reader(ctx context.Context, lines uint32) (*Reader, error) {
	r, err := l.snapshot(ctx)
	if err == nil && lines > 0 {
		if err = r.keepLines(int(lines)); err != nil {
			r.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// snapshot opens all files; what is written and rotated later changes nothing
// about what they hold up to here.
func (l *Log) snapshot(ctx context.Context) (_ *Reader, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.leave()
	r := &Reader{log: l}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	current := false
	for i := files - 1; i >= 0; i-- {
		f, fi, err := openToRead(l.file(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r.parts = append(r.parts, part{f: f, to: fi.Size()})
		if i == 0 {
			l.see(fi)
			current = true
		}
	}
	if !current {
		// The file that was known, if any, has nothing more to say.
		l.current = nil
		l.mu.Lock()
		l.publish(0)
		l.mu.Unlock()
	}
	if len(r.parts) == 0 {
		return nil, fmt.Errorf("log %s: %w", l.path, fs.ErrNotExist)
	}
	l.mu.Lock()
	r.number, r.removals = l.number, l.removals
	l.mu.Unlock()
	return r, nil
}

func openToRead(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := plainFile(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// Close lets go of the files.
func (r *Reader) Close() {
	for _, p := range r.parts {
		p.f.Close()
	}
	r.parts = nil
}

// size is what there is to read, in bytes.
func (r *Reader) size() (n int64) {
	for _, p := range r.parts {
		n += p.to - p.from
	}
	return n
}

// skip leaves out the first n bytes, which are no more than there are.
func (r *Reader) skip(n int64) {
	for i := range r.parts {
		p := &r.parts[i]
		k := min(n, p.to-p.from)
		p.from += k
		n -= k
	}
}

// keepLines leaves out all but the last n lines.
func (r *Reader) keepLines(n int) error {
	end := r.size()
	pos, seen := end, 0 // where the search is, and how many ends of lines it met
	buf := make([]byte, 64<<10)
	for i := len(r.parts) - 1; i >= 0; i-- {
		p := r.parts[i]
		for at := p.to; at > p.from; {
			block := buf[:min(int64(len(buf)), at-p.from)]
			at -= int64(len(block))
			if _, err := p.f.ReadAt(block, at); err != nil {
				return fmt.Errorf("read %s: %w", p.f.Name(), err)
			}
			pos -= int64(len(block))
			for k := len(block) - 1; k >= 0; k-- {
				// The log's last line has its end like the others.
				if block[k] != '\n' || pos+int64(k) == end-1 {
					continue
				}
				if seen++; seen == n {
					r.skip(pos + int64(k) + 1)
					return nil
				}
			}
		}
	}
	return nil
}

// Tail returns the last lines of the log, at most limit bytes of valid UTF-8.
// When that is not all, the first line says so, and how to get the rest.
func (l *Log) Tail(ctx context.Context, limit int64, rest string) (string, error) {
	r, err := l.snapshot(ctx)
	if err != nil {
		return "", err
	}
	defer r.Close()
	var b bytes.Buffer
	b.Grow(int(min(r.size(), limit)) + bytes.MinRead)
	if all := r.size(); all > limit {
		left, err := r.keepBytes(limit - 2*maxContent)
		if err != nil {
			return "", err
		}
		now := time.Now()
		b.Write(appendLine(nil, Record{Host, Notice, now,
			fmt.Appendf(nil, "the first %d of %d bytes are left out here; %s", left, all, rest)}, now))
	}
	for _, p := range r.parts {
		if err := p.copy(&b); err != nil {
			return "", err
		}
	}
	// Only what was written is valid for sure, not what became of it since.
	return string(bytes.ToValidUTF8(b.Bytes(), []byte("?"))), nil
}

// keepBytes leaves out whole lines until at most n bytes are kept, and returns
// how many it left out.
func (r *Reader) keepBytes(n int64) (left int64, err error) {
	left = r.size() - n
	r.skip(left)
	buf := make([]byte, 64<<10)
	for _, p := range r.parts {
		for at := p.from; at < p.to; {
			block := buf[:min(int64(len(buf)), p.to-at)]
			if _, err := p.f.ReadAt(block, at); err != nil {
				return 0, fmt.Errorf("read %s: %w", p.f.Name(), err)
			}
			at += int64(len(block))
			if k := bytes.IndexByte(block, '\n'); k >= 0 {
				// Whatever comes before is one piece of a line.
				more := at - int64(len(block)) + int64(k) + 1 - p.from
				r.skip(more)
				return left + more, nil
			}
		}
		left += p.to - p.from
		r.skip(p.to - p.from)
	}
	return left, nil
}
