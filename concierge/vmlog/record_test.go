package vmlog_test

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/auberge-vm/auberge/concierge/vmlog"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)

// Whatever a source says is one line of text that drives no terminal.
func TestLines(t *testing.T) {
	long := strings.Repeat("é", vmlog.MaxContent)
	for name, test := range map[string]struct {
		record vmlog.Record
		want   string
	}{
		"a record": {vmlog.Record{Source: vmlog.Kernel, Severity: vmlog.Warning, Time: noon, Content: []byte("text")},
			"2026-11-21T12:00:00.123456Z kernel warning: text"},
		"another zone": {vmlog.Record{Source: vmlog.User, Severity: vmlog.Debug, Time: noon.In(time.FixedZone("", 3600))},
			"2026-11-21T12:00:00.123456Z user debug: "},
		"no severity": {vmlog.Record{Source: vmlog.User, Time: noon}, "2026-11-21T12:00:00.123456Z user info: "},
		"a severity that is none": {vmlog.Record{Source: vmlog.User, Severity: 99, Time: noon},
			"2026-11-21T12:00:00.123456Z user info: "},
		"no time":             {vmlog.Record{Source: vmlog.Host}, "2026-11-21T12:00:00.123456Z host info: "},
		"a clock never set":   {vmlog.Record{Source: vmlog.Host, Time: time.Unix(5, 0)}, "2026-11-21T12:00:00.123456Z host info: "},
		"a clock far ahead":   {vmlog.Record{Source: vmlog.Host, Time: noon.AddDate(20000, 0, 0)}, "2026-11-21T12:00:00.123456Z host info: "},
		"a clock behind":      {vmlog.Record{Source: vmlog.Host, Time: noon.AddDate(-1, 0, 0)}, "2025-11-21T12:00:00.123456Z host info: "},
		"a clock a bit ahead": {vmlog.Record{Source: vmlog.Host, Time: noon.Add(time.Hour)}, "2026-11-21T13:00:00.123456Z host info: "},
		"tabs stay, the end of the line goes": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte("a\tb\r\n\n")},
			"2026-11-21T12:00:00.123456Z user info: a\tb"},
		"lines become one": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte("a\nb")},
			"2026-11-21T12:00:00.123456Z user info: a b"},
		"no UTF-8": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte("a\xff\xc3b")},
			"2026-11-21T12:00:00.123456Z user info: a\ufffd\ufffdb"},
		"what terminals obey": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte("\x1b[31m\x00\x7f\u009b\u202e\u2028x\ry")},
			"2026-11-21T12:00:00.123456Z user info: \ufffd[31m\ufffd\ufffd\ufffd\ufffd\ufffdx\ufffdy"},
		"words of the world": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte("naïve 日本 👩\u200d👩")},
			"2026-11-21T12:00:00.123456Z user info: naïve 日本 👩\u200d👩"},
		"too much": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte(long)},
			"2026-11-21T12:00:00.123456Z user info: " + long[:vmlog.MaxContent-4] + "…"},
		"as much as can be": {vmlog.Record{Source: vmlog.User, Time: noon, Content: []byte(long[:vmlog.MaxContent])},
			"2026-11-21T12:00:00.123456Z user info: " + long[:vmlog.MaxContent]},
	} {
		if got := string(vmlog.AppendLine([]byte("before"), test.record, noon)); got != "before"+test.want+"\n" {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

var lineFormat = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z kernel [a-z]+: `)

// FuzzLine: whatever a guest says, one bounded line of valid text comes of it,
// and what was good text stays as it is.
func FuzzLine(f *testing.F) {
	f.Add(int(vmlog.Info), int64(1700000000), int64(5), []byte("text"))
	f.Add(0, int64(-1<<62), int64(-1<<62), []byte("\x1b]0;title\x07\xff\xfe\n\r\x00"))
	f.Add(-1, int64(1<<62), int64(1<<62), []byte(strings.Repeat("\u202e", 2000)))
	f.Add(99, int64(253402300800), int64(999999999), []byte(strings.Repeat("é", 512)+"x"))
	f.Fuzz(func(t *testing.T, severity int, seconds, nanos int64, content []byte) {
		line := string(vmlog.AppendLine(nil, vmlog.Record{Source: vmlog.Kernel, Severity: vmlog.Severity(severity),
			Time: time.Unix(seconds, nanos), Content: content}, noon))
		head := lineFormat.FindString(line)
		text, whole := strings.CutSuffix(line, "\n")
		switch {
		case head == "":
			t.Fatalf("%q has no head", line)
		case !whole || !utf8.ValidString(line) || strings.ContainsFunc(text, func(r rune) bool {
			return unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || unicode.Is(unicode.Bidi_Control, r)
		}):
			t.Fatalf("%q is not one good line", line)
		case len(text)-len(head) > vmlog.MaxContent:
			t.Fatalf("%d bytes", len(text)-len(head))
		}
		good := strings.IndexFunc(string(content), func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) < 0
		if good && len(content) <= vmlog.MaxContent && text[len(head):] != string(content) {
			t.Fatalf("%q became %q", content, text[len(head):])
		}
	})
}
