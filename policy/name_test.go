package policy_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/auberge-vm/auberge/policy"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"x", "termina", "...", ".hidden", "-h", "a b", "a,b=c", "Zürich ✓", "\\", "%s", "~",
		strings.Repeat("x", 60), strings.Repeat("ü", 30)} {
		if err := policy.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for what, name := range map[string]string{
		"empty": "", "a dot": ".", "two dots": "..", "a slash": "/", "a path": "a/b", "dots and a slash": "../x",
		"NUL": "a\x00", "a newline": "a\n", "a tab": "\t", "escape": "\x1b[31m", "DEL": "\x7f", "C1 control": "\u0085",
		"61 bytes": strings.Repeat("x", 61), "31 letters of two bytes": strings.Repeat("ü", 31),
		"half a letter": "\xc3", "a surrogate": "\xed\xa0\x80", "overlong slash": "\xc0\xaf",
	} {
		if err := policy.CheckName(name); !errors.Is(err, policy.ErrName) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCheckContainerName(t *testing.T) {
	for _, name := range []string{"a", "penguin", "a-1", "web--2", strings.Repeat("a", 63)} {
		if err := policy.CheckContainerName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "a-", "-", "-a", "1a", "A", "a_b", "a.b", "a/b", "../a", "a b", "a\n", "a\x00", "é", strings.Repeat("a", 64)} {
		err := policy.CheckContainerName(name)
		if !errors.Is(err, policy.ErrContainerName) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"termina", "", ".", "..", "a/b", "a\x00b", "\xff", "ü", "\u0085", strings.Repeat("x", 61)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := policy.CheckName(name)
		if err != nil {
			if !utf8.ValidString(err.Error()) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("%q: the refusal itself cannot be shown: %q", name, err)
			}
			return
		}
		if name == "" || len(name) > policy.MaxNameLen || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			t.Errorf("accepted %q", name)
		}
		if filepath.Join("/dir", name) != "/dir/"+name || filepath.Base(name) != name {
			t.Errorf("%q leads out of a directory", name)
		}
	})
}
