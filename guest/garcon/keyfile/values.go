package keyfile

import "strings"

// Unescape gives a value of type string: \s, \n, \t, \r and \\ stand for a
// space and so on. Any other escape stays as it is, for the next reader.
func Unescape(v string) string {
	if !strings.Contains(v, `\`) {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' || i+1 == len(v) {
			b.WriteByte(v[i])
			continue
		}
		i++
		switch v[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		default:
			b.WriteByte('\\')
			b.WriteByte(v[i])
		}
	}
	return b.String()
}

// List splits a value of several strings at its separator, ; or , ; a
// separator after a backslash belongs to the string. Empty ones are left out,
// and so is what goes beyond the most.
func List(v string, separator byte, most int) []string {
	var list []string
	start := 0
	add := func(s string) {
		s = strings.ReplaceAll(s, `\`+string(separator), string(separator))
		if s = strings.TrimSpace(Unescape(s)); s != "" && len(list) < most {
			list = append(list, s)
		}
	}
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case separator:
			add(v[start:i])
			start = i + 1
		}
	}
	add(v[start:])
	return list
}

// Bool reads a boolean; anything else than one is false and not ok.
func Bool(v string) (value, ok bool) {
	switch strings.TrimRight(v, " \t") {
	case "true", "1":
		return true, true
	case "false", "0":
		return false, true
	}
	return false, false
}
