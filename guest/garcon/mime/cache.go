package mime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// maxFile bounds a cache; the usual one has 150 KB.
	maxFile = 16 << 20
	// maxNodes bounds the walk in a cache: its offsets may make a tree of any
	// size of a few bytes.
	maxNodes = 1 << 18
	// maxSuffix bounds an extension, in characters.
	maxSuffix = 64
	// maxType bounds the name of a MIME type.
	maxType = 255
	// maxTypes bounds the extensions of one cache.
	maxTypes = 1 << 15
)

// Offsets in the header, and sizes.
const (
	headerSize  = 40
	suffixTree  = 16 // where the header says where the tree of suffixes is
	nodeSize    = 12
	weightMask  = 0xff
	major       = 1
	minorOldest = 1
)

var errShort = errors.New("an offset beyond the end")

// A match is the best type of an extension so far.
type match struct {
	mime   string
	weight uint32
}

// Parse reads a cache: the types of files by their extensions, which have no
// dot in front. Of several types of an extension the one with the most weight
// counts, then the first.
func Parse(data []byte) (map[string]string, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("a MIME cache of %d bytes, where %d are read at most", len(data), maxFile)
	}
	if len(data) < headerSize {
		return nil, fmt.Errorf("a MIME cache of %d bytes: %w", len(data), errShort)
	}
	if v, w := binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]); v != major || w < minorOldest {
		return nil, fmt.Errorf("a MIME cache of version %d.%d, where 1.1 and later are known", v, w)
	}
	c := cache{data: data, found: map[string]match{}}
	root, _ := c.number(suffixTree)
	count, ok := c.number(uint64(root))
	if !ok {
		return nil, fmt.Errorf("MIME cache: the tree of suffixes: %w", errShort)
	}
	first, ok := c.number(uint64(root) + 4)
	if !ok {
		return nil, fmt.Errorf("MIME cache: the tree of suffixes: %w", errShort)
	}
	if err := c.walk(uint64(first), count, nil); err != nil {
		return nil, fmt.Errorf("MIME cache: %w", err)
	}
	types := make(map[string]string, len(c.found))
	for ext, m := range c.found {
		types[ext] = m.mime
	}
	return types, nil
}

type cache struct {
	data  []byte
	nodes int
	found map[string]match
}

// number reads at an offset, which never overflows: all are of 32 bits.
func (c *cache) number(at uint64) (uint32, bool) {
	if at+4 > uint64(len(c.data)) {
		return 0, false
	}
	return binary.BigEndian.Uint32(c.data[at:]), true
}

// walk visits nodes that lie side by side. The tree holds patterns from their
// end: tail is what of the pattern is known so far, the last character first.
func (c *cache) walk(at uint64, count uint32, tail []rune) error {
	for range count {
		if c.nodes++; c.nodes > maxNodes {
			return fmt.Errorf("a tree of more than %d nodes", maxNodes)
		}
		char, ok1 := c.number(at)
		second, ok2 := c.number(at + 4)
		third, ok3 := c.number(at + 8)
		if !ok1 || !ok2 || !ok3 {
			return errShort
		}
		at += nodeSize
		switch {
		case char == 0: // a pattern ends: its type and its weight
			if err := c.leaf(tail, second, third); err != nil {
				return err
			}
		case char > utf8.MaxRune || !utf8.ValidRune(rune(char)):
			return fmt.Errorf("%#x is no character", char)
		case len(tail) > maxSuffix: // no extension; others may be
		default:
			if err := c.walk(uint64(third), second, append(tail, rune(char))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cache) leaf(tail []rune, at, flags uint32) error {
	if len(tail) < 2 || tail[len(tail)-1] != '.' {
		return nil // *~ and the like
	}
	var b strings.Builder
	for i := len(tail) - 2; i >= 0; i-- {
		b.WriteRune(tail[i])
	}
	ext, weight := b.String(), flags&weightMask
	if had, known := c.found[ext]; known && had.weight >= weight || !known && len(c.found) >= maxTypes {
		return nil
	}
	name, err := c.typeName(at)
	if err != nil || name == "" {
		return err
	}
	c.found[ext] = match{name, weight}
	return nil
}

// typeName reads the name of a type; it is "" for one that is none.
func (c *cache) typeName(at uint32) (string, error) {
	if uint64(at) >= uint64(len(c.data)) {
		return "", errShort
	}
	text := c.data[at:]
	text = text[:min(len(text), maxType+1)]
	for i, b := range text {
		if b == 0 {
			name := string(text[:i])
			if !valid(name) {
				return "", nil
			}
			return name, nil
		}
	}
	return "", nil
}

func valid(name string) bool {
	media, sub, ok := strings.Cut(name, "/")
	return ok && media != "" && sub != "" && strings.IndexFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"[]?=`, r)
	}) < 0 && !strings.Contains(sub, "/")
}
