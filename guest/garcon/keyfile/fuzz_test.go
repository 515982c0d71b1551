package keyfile_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

// FuzzScan: a key file gives keys that are names, with values that are text of
// one line, or an error; the same again when it is written down and read anew.
func FuzzScan(f *testing.F) {
	f.Add([]byte("\xef\xbb\xbf# a comment\r\n[Desktop Entry]\r\nName=x\nName[de_DE.UTF-8@euro] = \xc3\xa4\n\n[a b]\nK.e-y_/=\\s=\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var lines []keyfile.Line
		scan := func(data []byte) error {
			return keyfile.Scan(data, func(l keyfile.Line) error {
				lines = append(lines, l)
				return nil
			})
		}
		if scan(data) != nil || len(lines) > 8000 {
			return // there may be no more groups, and each gets its own below
		}
		var again bytes.Buffer
		for _, l := range lines {
			if l.Group == "" || l.Key == "" || strings.ContainsAny(l.Group+l.Key+l.Locale, "[]\n") || strings.Contains(l.Key+l.Locale, "=") || strings.ContainsAny(l.Value, "\x00\n") ||
				!utf8.ValidString(l.Group) || !utf8.ValidString(l.Value) {
				t.Fatalf("%+v", l)
			}
			key := l.Key
			if l.Locale != "" {
				key += "[" + l.Locale + "]"
			}
			again.WriteString("[" + l.Group + "]\n" + key + "=" + l.Value + "\r\n")
		}
		first := lines
		lines = nil
		if err := scan(again.Bytes()); err != nil || len(lines) != len(first) {
			t.Fatalf("%d keys, and read again %d, %v", len(first), len(lines), err)
		}
		for i := range lines {
			if lines[i] != first[i] {
				t.Errorf("%+v is %+v when it is read again", first[i], lines[i])
			}
		}
	})
}

// FuzzValue: values of each type end with text, no longer than it was.
func FuzzValue(f *testing.F) {
	f.Add(`a\;b;;c\s\n\\;`, byte(';'), 2)
	f.Add(`true`, byte(','), 1)
	f.Add(`\`, byte(';'), 1)
	f.Fuzz(func(t *testing.T, v string, separator byte, most int) {
		if separator != ';' && separator != ',' {
			separator = ';'
		}
		if got := keyfile.Unescape(v); len(got) > len(v) || utf8.ValidString(v) && !utf8.ValidString(got) {
			t.Errorf("%q becomes %q", v, got)
		}
		list := keyfile.List(v, separator, most)
		if len(list) > max(most, 0) {
			t.Errorf("%d parts, more than %d", len(list), most)
		}
		for _, s := range list {
			if s == "" || len(s) > len(v) {
				t.Errorf("%q has the part %q", v, s)
			}
		}
		if value, ok := keyfile.Bool(v); value && !ok {
			t.Errorf("%q is true and not a boolean", v)
		}
	})
}
