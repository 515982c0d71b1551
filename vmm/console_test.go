package vmm_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/auberge-vm/auberge/vmm"
)

// A Ring keeps the last bytes of everything written to it, however it was
// cut up.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40).Draw(t, "size")
		r := vmm.NewRing(size)
		var all []byte
		for _, p := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 90), 0, 12).Draw(t, "writes") {
			if n, err := r.Write(p); n != len(p) || err != nil {
				t.Fatalf("wrote %d of %d, %v", n, len(p), err)
			}
			all = append(all, p...)
			want := all[max(0, len(all)-size):]
			if got := r.Tail(); !bytes.Equal(got, want) {
				t.Fatalf("the tail is %x, want %x", got, want)
			}
		}
	})
}

// The tail is the reader's: later writes leave it alone.
func TestRingTailIsACopy(t *testing.T) {
	r := vmm.NewRing(4)
	r.Write([]byte("abcd"))
	tail := r.Tail()
	r.Write([]byte("xyz"))
	if string(tail) != "abcd" {
		t.Errorf("the tail has become %q", tail)
	}
	p := []byte("long enough")
	r.Write(p)
	p[len(p)-1] = '!'
	if string(r.Tail()) != "ough" {
		t.Errorf("the ring has become %q", r.Tail())
	}
}

func TestLastLines(t *testing.T) {
	for name, test := range map[string]struct {
		console string
		n       int
		want    string
	}{
		"nothing":            {"", 3, ""},
		"fewer than asked":   {"a\nb\n", 3, "a\nb"},
		"the last":           {"a\nb\nc\nd\n", 2, "c\nd"},
		"no newline at last": {"a\nb", 1, "b"},
		"empty lines":        {"a\n\n \t\n\r\nb\n\n", 2, "a\nb"},
		"carriage returns":   {"a\r\nb\r\n", 2, "a\nb"},
		"colours":            {"\x1b[1;31mred\x1b[0m plain\n", 1, "red plain"},
		"cursor movements":   {"\x1b[2J\x1b[H\x1b[?25lup\n", 1, "up"},
		"a sequence cut off": {"ok\x1b[31\n", 1, "ok"},
		"control characters": {"a\x00b\x07c\x7fd\u0085e\n", 1, "abcde"},
		"tabs":               {"a\tb\n", 1, "a b"},
		"bad UTF-8":          {"a\xff\xfeb\n", 1, "a\ufffdb"},
		"half a letter":      {"a\xc3", 1, "a\ufffd"},
		"right to left":      {"a\u202eb\u200bc\u2028d\n", 1, "abcd"},
		"a long line":        {strings.Repeat("ä", 300) + "\n", 1, strings.Repeat("ä", 200)},
		"none asked":         {"a\n", 0, ""},
	} {
		if got := vmm.LastLines([]byte(test.console), test.n); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// Whatever a guest writes, what is shown of it is harmless and bounded.
func FuzzLastLines(f *testing.F) {
	for _, s := range []string{"", "a\nb\n", "\x1b[31mred", "\xff\xfe", "\u202e\u2028", "\x1b]0;title\x07x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, console []byte) {
		const n = 3
		got := vmm.LastLines(console, n)
		if !utf8.ValidString(got) || len(strings.Split(got, "\n")) > n {
			t.Errorf("%q", got)
		}
		for l := range strings.SplitSeq(got, "\n") {
			if utf8.RuneCountInString(l) > 200 || strings.ContainsFunc(l, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", l)
			}
		}
	})
}
