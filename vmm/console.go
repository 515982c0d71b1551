package vmm

import (
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// consoleSize is how much of a guest's console is kept, in bytes.
const consoleSize = 64 << 10

// A Ring keeps the last bytes written to it. A guest may write as much as it
// likes; the host's memory stays the same.
type Ring struct {
	mu   sync.Mutex
	buf  []byte
	next int
	full bool
}

// NewRing returns a ring of size bytes.
func NewRing(size int) *Ring { return &Ring{buf: make([]byte, size)} }

var _ io.Writer = (*Ring)(nil)

// Write never fails.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(p)
	if n >= len(r.buf) {
		copy(r.buf, p[n-len(r.buf):])
		r.next, r.full = 0, true
		return n, nil
	}
	k := copy(r.buf[r.next:], p)
	if k < n {
		copy(r.buf, p[k:])
		r.full = true
	}
	r.next += n
	if r.next >= len(r.buf) {
		r.next -= len(r.buf)
		r.full = true
	}
	return n, nil
}

// Tail returns the kept bytes, oldest first.
func (r *Ring) Tail() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return append([]byte(nil), r.buf[:r.next]...)
	}
	return append(append([]byte(nil), r.buf[r.next:]...), r.buf[:r.next]...)
}

// LastLines makes the end of a console fit for an error message: at most n
// lines that hold something, valid UTF-8 of printable characters without
// terminal sequences, no line longer than 200 characters.
func LastLines(console []byte, n int) string {
	var lines []string
	for l := range strings.Lines(string(console)) {
		if l = cleanLine(l); l != "" {
			lines = append(lines, l)
		}
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

func cleanLine(l string) string {
	const maxLine = 200
	var b strings.Builder
	escape := false
	count := 0
	for _, r := range strings.ToValidUTF8(l, string(utf8.RuneError)) {
		switch {
		case escape:
			// A terminal sequence ends with a letter.
			escape = !unicode.IsLetter(r)
		case r == 0x1b:
			escape = true
		case r == '\t':
			b.WriteByte(' ')
		case !unicode.IsPrint(r):
		case count < maxLine:
			b.WriteRune(r)
			count++
		}
	}
	return strings.TrimSpace(b.String())
}
