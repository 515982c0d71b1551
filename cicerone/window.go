package cicerone

import "time"

// A window lets so many things happen in a span of time.
type window struct {
	limit int
	span  time.Duration

	since time.Time
	n     int
}

// allow counts one and says whether it may happen.
func (w *window) allow(now time.Time) bool {
	if now.Sub(w.since) >= w.span {
		w.since, w.n = now, 0
	}
	if w.n >= w.limit {
		return false
	}
	w.n++
	return true
}
