package mime_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/guest/garcon/mime"
)

// A glob is a pattern *SUFFIX of a cache.
type glob struct {
	suffix, mime string
	weight       uint32
}

// build writes a cache with one branch for each pattern, which a reader cannot
// tell from one with joined branches.
func build(globs ...glob) []byte {
	be := binary.BigEndian
	data := make([]byte, 40)
	be.PutUint16(data, 1)
	be.PutUint16(data[2:], 2)
	put := func(numbers ...uint32) {
		for _, n := range numbers {
			data = be.AppendUint32(data, n)
		}
	}
	types := make([]uint32, len(globs))
	for i, g := range globs {
		types[i] = uint32(len(data))
		data = append(data, g.mime...)
		data = append(data, 0)
		for len(data)%4 != 0 {
			data = append(data, 0)
		}
	}
	roots := make([][3]uint32, len(globs))
	for i, g := range globs {
		at := uint32(len(data))
		put(0, types[i], g.weight)
		suffix := []rune(g.suffix)
		for _, r := range suffix[:len(suffix)-1] {
			next := uint32(len(data))
			put(uint32(r), 1, at)
			at = next
		}
		roots[i] = [3]uint32{uint32(suffix[len(suffix)-1]), 1, at}
	}
	be.PutUint32(data[16:], uint32(len(data)))
	put(uint32(len(globs)), uint32(len(data))+8)
	for _, r := range roots {
		put(r[:]...)
	}
	return data
}

func TestParse(t *testing.T) {
	got, err := mime.Parse(build(
		glob{".txt", "text/plain", 50},
		glob{".tar.gz", "application/x-compressed-tar", 50},
		glob{".m", "text/x-objcsrc", 50}, glob{".m", "text/x-matlab", 40}, glob{".m", "text/x-best", 60},
		glob{".C", "text/x-c++src", 50 | 0x100},
		glob{".ü", "text/x-u", 50},
		glob{"~", "application/x-trash", 10},
		glob{"README", "text/x-readme", 10},
		glob{".", "text/dot", 10},
		glob{".bad", "no type", 50}, glob{".worse", "text/", 50}, glob{".worst", "", 50},
		glob{"." + strings.Repeat("x", 100), "text/long", 50},
		glob{".long", "text/" + strings.Repeat("x", 300), 50},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"txt": "text/plain", "tar.gz": "application/x-compressed-tar", "m": "text/x-best", "C": "text/x-c++src", "ü": "text/x-u"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseBad(t *testing.T) {
	good := build(glob{".txt", "text/plain", 50})
	tree := binary.BigEndian.Uint32(good[16:])
	change := func(at, to uint32) []byte {
		data := append([]byte{}, good...)
		binary.BigEndian.PutUint32(data[at:], to)
		return data
	}
	loop := change(tree+8+8, tree+8) // the root is its own child
	wide := change(tree, 1<<31)
	cases := map[string][]byte{
		"empty":                   {},
		"short":                   good[:39],
		"version":                 change(0, 2<<16),
		"tree beyond the end":     change(16, 1<<31),
		"tree at the end":         change(16, uint32(len(good))-4),
		"nodes beyond the end":    change(tree+4, 0xffffffff),
		"too many roots":          wide,
		"no character":            change(tree+8, 0xd800),
		"children beyond the end": change(tree+8+8, 0xfffffff0),
		"cut":                     good[:len(good)-1],
	}
	for name, data := range cases {
		if types, err := mime.Parse(data); err == nil {
			t.Errorf("%s: taken: %v", name, types)
		}
	}
	if types, err := mime.Parse(loop); err != nil || len(types) != 0 {
		t.Errorf("a loop of one: %v, %v", types, err)
	}
	// Two nodes that are each other's children twice: 2^64 paths.
	bomb := change(tree, 2)
	bomb = append(bomb, make([]byte, 24)...)
	for i := range uint32(2) {
		at := tree + 8 + 12*i
		for j, n := range []uint32{'a', 2, tree + 8} {
			binary.BigEndian.PutUint32(bomb[at+4*uint32(j):], n)
		}
	}
	if _, err := mime.Parse(bomb); err == nil || !strings.Contains(err.Error(), "nodes") {
		t.Errorf("a bomb: %v", err)
	}
}

func TestLoad(t *testing.T) {
	home, system := t.TempDir(), t.TempDir()
	write(t, mime.Cache(home), build(glob{".txt", "text/x-mine", 1}))
	write(t, mime.Cache(system), build(glob{".txt", "text/plain", 50}, glob{".png", "image/png", 50}))
	broken := t.TempDir()
	write(t, mime.Cache(broken), []byte("what"))
	got, err := mime.Load([]string{home, t.TempDir(), broken, system})
	if err == nil || !strings.Contains(err.Error(), "MIME cache") {
		t.Errorf("the broken one: %v", err)
	}
	if diff := cmp.Diff(map[string]string{"txt": "text/x-mine", "png": "image/png"}, got); diff != "" {
		t.Error(diff)
	}
}

// A real cache, of the package shared-mime-info.
func TestSystemCache(t *testing.T) {
	got, err := mime.Load([]string{"/usr/share"})
	if err != nil {
		t.Fatal(err)
	}
	for ext, want := range map[string]string{"png": "image/png", "txt": "text/plain", "html": "text/html", "deb": "application/vnd.debian.binary-package", "svg": "image/svg+xml"} {
		if got[ext] != want {
			t.Errorf("%s is %q, want %q (of %d; needs the package shared-mime-info)", ext, got[ext], want, len(got))
		}
	}
}

func TestTypesAreBounded(t *testing.T) {
	// Four caches of all that one may hold.
	var dirs []string
	for d := range 4 {
		var globs []glob
		for i := range 1 << 15 {
			globs = append(globs, glob{string([]rune{'.', rune('a' + d), rune(0x4e00 + i>>8), rune(0x4e00 + i&0xff)}), "text/" + strings.Repeat("x", 200), 50})
		}
		dirs = append(dirs, t.TempDir())
		write(t, mime.Cache(dirs[d]), build(globs...))
	}
	got, err := mime.Load(dirs)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 8192 || got["a一一"] == "" || got["d一一"] != "" {
		t.Errorf("%d types", len(got))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(build(glob{".txt", "text/plain", 50}, glob{".tar.gz", "application/x-tar", 50}, glob{"~", "a/b", 1}))
	f.Fuzz(func(t *testing.T, data []byte) {
		types, err := mime.Parse(data)
		if err != nil {
			return
		}
		for ext, name := range types {
			if ext == "" || !strings.Contains(name, "/") {
				t.Errorf("%q is %q", ext, name)
			}
		}
	})
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
