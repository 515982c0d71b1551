package vmc

import (
	"slices"
	"strings"
	"unicode"
)

// suggestion says which of the candidates somebody may have meant by word, as
// the end of an error's text; nothing when none is near.
func suggestion(word string, candidates []string) string {
	best, distance := "", 3
	meant := word
	word = strings.ToLower(word)
	for _, c := range candidates {
		if c == meant {
			return "" // it is no mistake, whatever is wrong
		}
		low := strings.ToLower(c)
		if low != word && withoutDigits(low) == withoutDigits(word) {
			continue // web1 is not a mistake for web2
		}
		d := edits(word, low)
		if len(word) >= 3 && strings.HasPrefix(low, word) {
			d = min(d, 1)
		}
		if d < distance && d < len(word) {
			best, distance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

func withoutDigits(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsDigit(c) {
			return -1
		}
		return c
	}, s)
}

// edits counts the letters to insert, remove, replace or swap with their
// neighbour that make b of a.
func edits(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
