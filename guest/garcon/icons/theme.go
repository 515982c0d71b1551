package icons

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

const (
	maxIndex   = 1 << 20 // of an index.theme
	maxDirs    = 4096    // of a theme
	maxInherit = 32      // parents of a theme
	maxNumber  = 1 << 16 // of a size, a scale
)

// A kind says how a directory's pictures may be scaled.
type kind int

const (
	threshold kind = iota // the default
	fixed
	scalable
)

// A directory of a theme.
type directory struct {
	name             string
	kind             kind
	size, scale      int
	min, max, spread int // spread: the key Threshold
}

// A theme is what an index.theme says.
type theme struct {
	inherits []string
	dirs     []directory
}

// parseTheme reads an index.theme.
func parseTheme(data []byte) (*theme, error) {
	if len(data) > maxIndex {
		return nil, fmt.Errorf("%d bytes, where %d are read at most", len(data), maxIndex)
	}
	t := &theme{}
	var names []string
	groups := map[string]map[string]string{}
	there := false
	err := keyfile.Scan(data, func(l keyfile.Line) error {
		switch {
		case l.Locale != "":
		case l.Group != "Icon Theme":
			if groups[l.Group] == nil {
				groups[l.Group] = map[string]string{}
			}
			switch l.Key {
			case "Size", "Scale", "Type", "MaxSize", "MinSize", "Threshold":
				groups[l.Group][l.Key] = strings.TrimSpace(l.Value)
			}
		case l.Key == "Inherits":
			t.inherits = keyfile.List(l.Value, ',', maxInherit)
			there = true
		case l.Key == "Directories" || l.Key == "ScaledDirectories":
			names = append(names, keyfile.List(l.Value, ',', maxDirs)...)
			there = true
		default:
			there = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, errors.New("it has no group [Icon Theme]")
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] || len(t.dirs) == maxDirs || !local(name) {
			continue
		}
		seen[name] = true
		if d, ok := newDirectory(name, groups[name]); ok {
			t.dirs = append(t.dirs, d)
		}
	}
	return t, nil
}

// newDirectory leaves out what has no size, the one key that is required.
func newDirectory(name string, keys map[string]string) (directory, bool) {
	d := directory{name: name}
	ok := true
	number := func(key string, otherwise int) int {
		text, there := keys[key]
		if !there {
			return otherwise
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > maxNumber {
			ok = false
		}
		return n
	}
	d.size = number("Size", 0)
	d.scale = number("Scale", 1)
	d.min = number("MinSize", d.size)
	d.max = number("MaxSize", d.size)
	d.spread = number("Threshold", 2)
	switch keys["Type"] {
	case "Fixed":
		d.kind = fixed
	case "Scalable":
		d.kind = scalable
	}
	return d, ok && d.size > 0 && d.scale > 0
}

// matches tells whether the directory is for this size and scale.
func (d directory) matches(size, scale int) bool {
	if d.scale != scale {
		return false
	}
	switch d.kind {
	case fixed:
		return d.size == size
	case scalable:
		return d.min <= size && size <= d.max
	}
	return d.size-d.spread <= size && size <= d.size+d.spread
}

// distance tells how far the directory's pictures are from this size, in
// pixels.
func (d directory) distance(size, scale int) int {
	want := size * scale
	low, high := d.size*d.scale, d.size*d.scale
	switch d.kind {
	case scalable:
		low, high = d.min*d.scale, d.max*d.scale
	case threshold:
		low, high = (d.size-d.spread)*d.scale, (d.size+d.spread)*d.scale
	}
	switch {
	case want < low:
		return low - want
	case want > high:
		return want - high
	}
	return 0
}

// local tells whether a path stays where it begins.
func local(path string) bool {
	if path == "" || strings.HasPrefix(path, "/") || strings.ContainsRune(path, 0) {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			return false
		}
	}
	return true
}
