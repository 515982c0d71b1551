package ansible

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

const (
	// maxLine bounds a line; what is longer is cut.
	maxLine = 4 << 10
	// A batch goes out when it has as many lines or bytes, or has waited.
	batchLines = 128
	batchBytes = 32 << 10
	batchTime  = 250 * time.Millisecond
)

// lines is a writer that makes lines of what is written.
type lines struct {
	put  func(string)
	part []byte
	cut  bool
	keep int // how much of all text is kept, in bytes
	kept []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p[:min(len(p), l.keep-len(l.kept))]...)
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		room := maxLine - len(l.part)
		if len(line) > room {
			l.cut = true
			line = line[:room]
		}
		l.part = append(l.part, line...)
		if ended {
			l.end()
		}
		rest = after
	}
	return len(p), nil
}

func (l *lines) end() {
	text := strings.TrimRight(string(l.part), "\r")
	if l.cut {
		text += "..."
	}
	l.part, l.cut = l.part[:0], false
	l.put(strings.ToValidUTF8(text, "?"))
}

// flush ends a last line that has no end.
func (l *lines) flush() {
	if len(l.part) > 0 {
		l.end()
	}
}

// A batcher gathers lines and hands them on in their order.
type batcher struct {
	out   func([]string)
	after time.Duration

	mu    sync.Mutex
	some  []string
	size  int
	timer *time.Timer
	wg    sync.WaitGroup
}

func newBatcher(out func([]string), after time.Duration) *batcher {
	return &batcher{out: out, after: after}
}

func (b *batcher) put(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.some = append(b.some, line)
	b.size += len(line)
	switch {
	case len(b.some) >= batchLines || b.size >= batchBytes:
		b.send()
	case b.timer == nil:
		b.wg.Add(1)
		b.timer = time.AfterFunc(b.after, func() {
			defer b.wg.Done()
			b.mu.Lock()
			defer b.mu.Unlock()
			b.timer = nil
			b.send()
		})
	}
}

// send hands on what there is. It is called with the lock, which keeps the
// order; out does not wait.
func (b *batcher) send() {
	if len(b.some) > 0 {
		b.out(b.some)
	}
	b.some, b.size = nil, 0
}

// close hands on the rest.
func (b *batcher) close() {
	b.mu.Lock()
	if b.timer != nil && b.timer.Stop() {
		b.wg.Done()
	}
	b.send()
	b.mu.Unlock()
	b.wg.Wait()
}
