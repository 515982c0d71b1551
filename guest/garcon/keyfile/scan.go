package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits bound what a file may hold.
const (
	maxGroups = 8192
	maxName   = 256      // of a group or key, with its locale
	maxValue  = 64 << 10 // longer ones are left out
)

// A Line is one key of a group, with its value as it stands in the file.
type Line struct {
	Group  string
	Key    string // without its locale
	Locale string // "" for the default
	Value  string
}

// Scan calls take for each key of a file in order. A line that is none at all
// makes the file invalid, as do text before the first group and a group
// without a name. A key or value that is not UTF-8, holds a NUL or is longer
// than any has reason to be is left out, so that one bad translation costs
// nothing but itself.
func Scan(data []byte, take func(Line) error) error {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	group, groups, number := "", 0, 0
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		number++
		line = bytes.TrimSuffix(line, []byte{'\r'})
		switch trimmed := bytes.TrimLeft(line, " \t"); {
		case len(bytes.TrimSpace(trimmed)) == 0 || trimmed[0] == '#':
			continue
		case trimmed[0] == '[':
			name, err := groupName(trimmed)
			if err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
			if groups++; groups > maxGroups {
				return fmt.Errorf("line %d: more than %d groups", number, maxGroups)
			}
			group = name
			continue
		}
		l, ok, err := keyLine(line)
		switch {
		case err != nil:
			return fmt.Errorf("line %d: %w", number, err)
		case groups == 0:
			return fmt.Errorf("line %d: a key before the first group", number)
		case !ok:
			continue
		}
		l.Group = group
		if err := take(l); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
	return nil
}

func groupName(line []byte) (string, error) {
	name, ok := bytes.CutSuffix(bytes.TrimRight(line[1:], " \t"), []byte{']'})
	switch {
	case !ok:
		return "", errors.New("a group's name without its end")
	case len(name) == 0:
		return "", errors.New("a group without a name")
	case len(name) > maxName:
		return "", fmt.Errorf("a group's name of more than %d bytes", maxName)
	case !utf8.Valid(name):
		return "", errors.New("a group's name that is not UTF-8")
	}
	for _, c := range name {
		if c == '[' || c == ']' || c < ' ' || c == 0x7f {
			return "", errors.New("a group's name with brackets or control characters")
		}
	}
	return string(name), nil
}

// keyLine tells apart what is wrong for the file from what is left out.
func keyLine(line []byte) (l Line, ok bool, err error) {
	key, value, found := bytes.Cut(line, []byte{'='})
	if !found {
		return Line{}, false, errors.New("neither a group nor a key nor a comment")
	}
	key = bytes.Trim(key, " \t")
	value = bytes.TrimLeft(value, " \t")
	if len(key) == 0 {
		return Line{}, false, errors.New("a key without a name")
	}
	if len(key) > maxName || len(value) > maxValue || !utf8.Valid(key) || !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0 {
		return Line{}, false, nil
	}
	l.Value = string(value)
	name := string(key)
	if at := strings.IndexByte(name, '['); at >= 0 {
		locale, closed := strings.CutSuffix(name[at+1:], "]")
		if !closed || !validLocale(locale) {
			return Line{}, false, nil
		}
		name, l.Locale = strings.TrimRight(name[:at], " \t"), locale
	}
	l.Key = name
	return l, validKey(name), nil
}

func validKey(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !alnum(r) && !strings.ContainsRune("-_./", r) }) < 0
}

func validLocale(s string) bool {
	return s != "" && len(s) <= 64 && strings.IndexFunc(s, func(r rune) bool { return !alnum(r) && !strings.ContainsRune("-_.@", r) }) < 0
}

func alnum(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}
