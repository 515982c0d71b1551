package vmc

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var (
	gdbusList = regexp.MustCompile(`^\(?(?:\[byte ([^\]]*)\]|@ay \[\s*\]),?\)?$`)
	gdbusText = regexp.MustCompile(`^\(?b('|")(.*)('|"),?\)?$`)
	// gdbus monitor puts the object and the signal before the arguments.
	gdbusSignal = regexp.MustCompile(`^/[^ ]*: [^ ]+ (\(.*\))$`)
)

// readGDBus reads what gdbus prints: an array of bytes of GVariant's text
// format, alone or in a tuple. Bytes that end with a 0 come as a byte string
// without it. ok says that the text looks like one of these.
func readGDBus(text string) (b []byte, ok bool, err error) {
	if m := gdbusSignal.FindStringSubmatch(text); m != nil {
		text = m[1]
	}
	if m := gdbusList.FindStringSubmatch(text); m != nil {
		b, err = readNumbers(m[1], ",")
		return b, true, err
	}
	m := gdbusText.FindStringSubmatch(text)
	if m == nil {
		return nil, false, nil
	}
	if m[1] != m[3] {
		return nil, true, errors.New("this byte string of gdbus was cut off")
	}
	if b, err = unescape(m[2]); err != nil {
		return nil, true, fmt.Errorf("this byte string of gdbus: %w", err)
	}
	return append(b, 0), true, nil
}

// unescape undoes GLib's escapes: C's, with octal numbers.
func unescape(s string) ([]byte, error) {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			return nil, errors.New("a backslash at its end")
		}
		if at := strings.IndexByte("abfnrtv", s[i]); at >= 0 {
			b = append(b, "\a\b\f\n\r\t\v"[at])
			continue
		}
		if s[i] < '0' || s[i] > '7' {
			b = append(b, s[i]) // itself, such as a quote
			continue
		}
		n, digits := 0, 0
		for ; digits < 3 && i < len(s) && s[i] >= '0' && s[i] <= '7'; digits++ {
			n = n*8 + int(s[i]-'0')
			i++
		}
		i--
		if n > 255 {
			return nil, fmt.Errorf(`the number \%o is no byte`, n)
		}
		b = append(b, byte(n))
	}
	return b, nil
}
