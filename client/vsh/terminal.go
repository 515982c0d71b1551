package vsh

import (
	"fmt"
	"sync"

	"golang.org/x/term"
)

// IsTerminal reports whether a standard file is a terminal.
func IsTerminal(v any) bool {
	f := file(v)
	return f != nil && term.IsTerminal(int(f.Fd()))
}

// windowSize is the size of the first of the files that is a terminal, or 0, 0.
func windowSize(files ...any) (rows, cols int32) {
	for _, v := range files {
		if f := file(v); f != nil {
			if w, h, err := term.GetSize(int(f.Fd())); err == nil {
				return int32(h), int32(w)
			}
		}
	}
	return 0, 0
}

// A rawTerminal is the caller's terminal in raw mode. Nil stands for none.
type rawTerminal struct {
	fd    int
	once  sync.Once
	state *term.State
}

// terminal puts Stdin into raw mode, if it is a terminal and the session wants
// one.
func (s *session) terminal() (*rawTerminal, error) {
	if !s.opts.Pty || !IsTerminal(s.opts.Stdin) {
		return nil, nil
	}
	t := &rawTerminal{fd: int(file(s.opts.Stdin).Fd())}
	var err error
	if t.state, err = term.MakeRaw(t.fd); err != nil {
		return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	return t, nil
}

// again sets raw mode once more, after the shell that this process was stopped
// in has set its own.
func (t *rawTerminal) again() {
	if t != nil {
		term.MakeRaw(t.fd)
	}
}

// restore gives the terminal back as it was. It may be called more than once.
func (t *rawTerminal) restore() {
	if t != nil {
		t.once.Do(func() { term.Restore(t.fd, t.state) })
	}
}
