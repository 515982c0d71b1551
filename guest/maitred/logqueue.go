package maitred

import (
	"fmt"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
)

const (
	// queueLimit bounds what one log may hold in memory while the host does
	// not take it.
	queueLimit = 128 << 10
	// batchSize is about how much goes out in one call.
	batchSize = 4 << 10
	// lineCost is what a line takes besides its text, here and on the wire.
	lineCost = 32
	// severityError is syslog(2)'s; such lines wait for nothing.
	severityError = 3
	// severityWarning is that of the queue's own lines.
	severityWarning = 4
)

// A logQueue holds the lines of one log until they are sent. When it is full
// the oldest go, and their number is told in their place.
type logQueue struct {
	some chan struct{} // gets a value when there are lines
	now  chan struct{} // gets a value when they should not wait

	mu    sync.Mutex
	lines []core.LogLine
	size  int
	lost  uint64
}

func newLogQueue() *logQueue {
	return &logQueue{some: make(chan struct{}, 1), now: make(chan struct{}, 1)}
}

func costOf(l core.LogLine) int { return len(l.Text) + lineCost }

func (q *logQueue) push(l core.LogLine) {
	q.mu.Lock()
	q.lines = append(q.lines, l)
	q.size += costOf(l)
	drop := 0
	for q.size > queueLimit {
		q.size -= costOf(q.lines[drop])
		q.lines[drop] = core.LogLine{}
		drop++
	}
	q.lines = q.lines[drop:]
	q.lost += uint64(drop)
	urgent := l.Severity <= severityError || q.size >= batchSize
	q.mu.Unlock()
	ping(q.some)
	if urgent {
		ping(q.now)
	}
}

// lose notes lines that were gone before they came here.
func (q *logQueue) lose(n uint64) {
	q.mu.Lock()
	q.lost += n
	q.mu.Unlock()
	ping(q.some)
}

// take removes the next batch, which is empty when there is nothing.
func (q *logQueue) take() []core.LogLine {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []core.LogLine
	if q.lost > 0 {
		text := fmt.Sprintf("maitred: %d older lines of this log were lost", q.lost)
		batch = append(batch, core.LogLine{Severity: severityWarning, Time: time.Now(), Text: []byte(text)})
		q.lost = 0
	}
	n, size := 0, 0
	for n < len(q.lines) && size < batchSize {
		size += costOf(q.lines[n])
		n++
	}
	batch = append(batch, q.lines[:n]...)
	clear(q.lines[:n])
	q.lines = q.lines[n:]
	q.size -= size
	if len(q.lines) == 0 {
		q.lines = nil // lets the memory go
	}
	return batch
}

func ping(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
