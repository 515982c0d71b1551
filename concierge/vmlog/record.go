package vmlog

import (
	"bytes"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Source says where a record comes from.
type Source string

const (
	Kernel  Source = "kernel"  // the guest's kernel
	User    Source = "user"    // the guest's programs
	Console Source = "console" // the tail of the guest's console
	Host    Source = "host"    // this service
)

// A Severity is one of syslog(3) and one higher, since zero stands for none.
type Severity int

const (
	Emergency Severity = iota + 1
	Alert
	Critical
	Error
	Warning
	Notice
	Info
	Debug
)

var severityNames = [...]string{Emergency: "emergency", Alert: "alert", Critical: "critical", Error: "error",
	Warning: "warning", Notice: "notice", Info: "info", Debug: "debug"}

func (s Severity) String() string {
	if s < Emergency || s > Debug {
		s = Info
	}
	return severityNames[s]
}

// A Record is one line to be.
type Record struct {
	Source   Source
	Severity Severity
	// Time is what the source says. One that cannot be true is replaced by
	// the time at which the record is written.
	Time    time.Time
	Content []byte
}

const (
	// maxContent bounds the text of a line, in bytes.
	maxContent = 1 << 10
	cutMark    = "…"
	timeLayout = "2006-01-02T15:04:05.000000Z"
	// maxAhead is how far a source's clock may be ahead of ours: one that is
	// in local time is, by some hours.
	maxAhead = 24 * time.Hour
)

// earliest is before anything that can have been logged: what is older comes
// from a clock that nobody has set.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// appendLine adds a record as one line.
func appendLine(b []byte, r Record, now time.Time) []byte {
	t := r.Time
	if t.Before(earliest) || t.After(now.Add(maxAhead)) {
		t = now
	}
	b = t.UTC().AppendFormat(b, timeLayout)
	b = append(b, ' ')
	b = append(b, r.Source...)
	b = append(b, ' ')
	b = append(b, r.Severity.String()...)
	b = append(b, ": "...)
	b = appendText(b, r.Content)
	return append(b, '\n')
}

// appendText adds a foreign text as valid UTF-8 that stays in its line and
// does nothing to a terminal, cut when it is too long.
func appendText(b, text []byte) []byte {
	text = bytes.TrimRight(text, "\r\n\x00")
	if len(text) <= maxContent && plain(text) {
		return append(b, text...)
	}
	limit := len(b) + maxContent
	cut := len(b) // where the mark would still fit
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		text = text[n:]
		switch {
		case r == '\n':
			r = ' '
		case harmful(r):
			r = utf8.RuneError
		}
		if b = utf8.AppendRune(b, r); len(b) > limit {
			return append(b[:cut], cutMark...)
		}
		if len(b) <= limit-len(cutMark) {
			cut = len(b)
		}
	}
	return b
}

// plain says that a text is printable ASCII, as most are: those take a short
// way.
func plain(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// harmful finds what would end a line, drive a terminal or turn the order of
// the text around.
func harmful(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}
