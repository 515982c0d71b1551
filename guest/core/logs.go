package core

import (
	"bytes"
	"strconv"
	"time"
)

// maxLogLine bounds one record's text; longer lines become several records.
const maxLogLine = 1024

// severityNotice is what a message without a priority has (RFC 3164, 4.3.3).
const severityNotice = 5

// A LogLine is one line of a log.
type LogLine struct {
	Severity int // of syslog(2), 0 to 7
	// Time is when a line of a program arrived, SinceBoot when the kernel wrote
	// one of its; the other is zero. The kernel's clock is not the machine's
	// until that is set, so what it says is turned into a time at the end.
	Time      time.Time
	SinceBoot time.Duration
	Text      []byte
}

// A kmsgRecord is one read of /dev/kmsg.
type kmsgRecord struct {
	severity  int
	seq       uint64
	sinceBoot time.Duration
	text      []byte
}

// parseKmsg reads "priority,sequence,microseconds,flags[,...];text\n", which
// lines of properties follow (Documentation/ABI/testing/dev-kmsg). What
// is not printable is escaped in the text as \xNN.
func parseKmsg(record []byte) (kmsgRecord, bool) {
	head, text, ok := bytes.Cut(record, []byte(";"))
	fields := bytes.SplitN(head, []byte(","), 4)
	if !ok || len(fields) < 3 {
		return kmsgRecord{}, false
	}
	priority, err := strconv.ParseUint(string(fields[0]), 10, 32)
	if err != nil {
		return kmsgRecord{}, false
	}
	seq, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return kmsgRecord{}, false
	}
	micros, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil || micros < 0 || micros > int64(1<<63-1)/1000 {
		return kmsgRecord{}, false
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return kmsgRecord{
		severity: int(priority & 7), seq: seq, sinceBoot: time.Duration(micros) * time.Microsecond, text: unescapeKmsg(text),
	}, true
}

func unescapeKmsg(text []byte) []byte {
	if !bytes.Contains(text, []byte(`\x`)) {
		return bytes.Clone(text)
	}
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		if len(text) >= 4 && text[0] == '\\' && text[1] == 'x' {
			if b, err := strconv.ParseUint(string(text[2:4]), 16, 8); err == nil {
				out = append(out, byte(b))
				text = text[4:]
				continue
			}
		}
		out = append(out, text[0])
		text = text[1:]
	}
	return out
}

// parseSyslog reads a message as programs send it to /dev/log: "<priority>"
// and then what syslog(3) writes (RFC 3164 without a host) or RFC 5424. The
// time in it is dropped, because it may lack year and zone and be anything;
// what is left is "program[pid]: text". A message that is in no form is its
// own text.
func parseSyslog(message []byte) (severity int, text []byte) {
	severity, text = cutPriority(message)
	if rest, ok := bytes.CutPrefix(text, []byte("1 ")); ok && len(text) < len(message) {
		if t, ok := parse5424(rest); ok {
			return severity, t
		}
	}
	return severity, cutStamp(text)
}

func cutPriority(message []byte) (severity int, rest []byte) {
	// The highest is 23*8+7, facility and severity.
	end := bytes.IndexByte(message[:min(len(message), 5)], '>')
	if end < 2 || message[0] != '<' {
		return severityNotice, message
	}
	n, err := strconv.ParseUint(string(message[1:end]), 10, 8)
	if err != nil || n > 191 {
		return severityNotice, message
	}
	return int(n & 7), message[end+1:]
}

// cutStamp takes "Nov 21 19:05:06 " away, or what RFC 3339 writes.
func cutStamp(text []byte) []byte {
	if n := len(time.Stamp); len(text) > n && text[n] == ' ' {
		if _, err := time.Parse(time.Stamp, string(text[:n])); err == nil {
			return text[n+1:]
		}
	}
	word, rest, ok := bytes.Cut(text, []byte(" "))
	if ok && len(word) >= len("2006-01-02T15:04:05Z") && len(word) <= 40 {
		if _, err := time.Parse(time.RFC3339Nano, string(word)); err == nil {
			return rest
		}
	}
	return text
}

// parse5424 reads "time host program pid id [data] text" (RFC 5424, 6).
func parse5424(b []byte) ([]byte, bool) {
	fields := bytes.SplitN(b, []byte(" "), 6)
	if len(fields) < 6 {
		return nil, false
	}
	stamp, program, pid := fields[0], fields[2], fields[3]
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil && string(stamp) != "-" {
		return nil, false
	}
	// The data stays as it is: it may be all that the message has.
	text := bytes.TrimPrefix(fields[5], []byte("-"))
	text = bytes.TrimPrefix(text, []byte(" "))
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	out := make([]byte, 0, len(b))
	out = append(out, program...)
	if string(pid) != "-" {
		out = append(append(append(out, '['), pid...), ']')
	}
	return append(append(out, ": "...), text...), true
}

// splitLines cuts a text into lines that fit a record. Ends of lines and NULs
// around them go, and empty lines with them.
func splitLines(text []byte, each func(line []byte)) {
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		line = bytes.Trim(line, "\r\x00")
		for len(line) > maxLogLine {
			each(line[:maxLogLine])
			line = line[maxLogLine:]
		}
		if len(line) > 0 {
			each(line)
		}
	}
}
