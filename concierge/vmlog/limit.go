package vmlog

import "time"

// What a guest may write to its log. A guest that boots and one that has been
// silent for a while may say a lot at once.
const (
	rate     = 128 << 10 // bytes per second
	burst    = 1 << 20   // bytes
	maxDelay = 3 * time.Second
	maxDebt  = rate * int(maxDelay/time.Second)
)

// A bucket slows a guest down: what it writes beyond its share is a debt, and
// the answer is delayed until that is paid. Calls at once would only add to
// the debt, so that they are refused when it is too high.
type bucket struct {
	left int // bytes; negative is a debt
	last time.Time
}

// take says how long the answer to a call of n bytes is to be delayed, and
// whether the bytes may be written at all.
func (b *bucket) take(now time.Time, n int) (delay time.Duration, ok bool) {
	if b.last.IsZero() {
		b.left, b.last = burst, now
	}
	// Capped before it is multiplied: a bucket is full long before an hour.
	if passed := min(now.Sub(b.last), time.Hour); passed > 0 {
		b.left = min(b.left+int(passed.Seconds()*rate), burst)
		b.last = now
	}
	if b.left < -maxDebt {
		return maxDelay, false
	}
	b.left -= n
	if b.left >= 0 {
		return 0, true
	}
	return min(time.Duration(float64(-b.left)/rate*float64(time.Second)), maxDelay), true
}
