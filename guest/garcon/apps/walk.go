package apps

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

// What is looked at, at most, all directories of applications together.
const (
	maxFiles   = 4096
	maxDirs    = 1024
	maxDepth   = 16
	maxEntries = 1 << 17 // of directories
)

// A file with an application, maybe.
type file struct {
	id   string
	path string
	info os.FileInfo
}

// A tree is what lies in the directories of applications.
type tree struct {
	files []file
	dirs  []string
	// full says that there is more than is looked at.
	full bool

	entries int
}

// walk reads the directories in order; in each, files come before the
// directories in it, all by name.
func walk(roots []string) *tree {
	t := &tree{}
	for _, root := range roots {
		t.walk(root, "", nil)
	}
	return t
}

// inode tells directories apart, also behind links.
type inode struct{ dev, ino uint64 }

func inodeOf(fi os.FileInfo) inode {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return inode{uint64(st.Dev), st.Ino}
	}
	return inode{}
}

func (t *tree) walk(root, relative string, above []inode) {
	dir := filepath.Join(root, relative)
	fi, err := os.Stat(dir)
	if err != nil || !fi.IsDir() {
		return
	}
	id := inodeOf(fi)
	if slices.Contains(above, id) {
		return // a link to where we come from
	}
	if len(t.dirs) >= maxDirs || len(above) >= maxDepth {
		t.full = true
		return
	}
	t.dirs = append(t.dirs, dir)
	above = append(slices.Clip(above), id)
	var subs []string
	for _, e := range t.read(dir) {
		name := filepath.Join(relative, e.Name())
		if e.IsDir() {
			subs = append(subs, name)
			continue
		}
		if !strings.HasSuffix(name, ".desktop") && e.Type()&os.ModeSymlink == 0 {
			continue
		}
		path := filepath.Join(root, name)
		info, err := os.Stat(path)
		switch {
		case err != nil:
		case info.IsDir():
			subs = append(subs, name)
		case info.Mode().IsRegular():
			id := desktop.ID(name)
			if id == "" {
				continue
			}
			if len(t.files) >= maxFiles {
				t.full = true
				return
			}
			t.files = append(t.files, file{id, path, info})
		}
	}
	for _, sub := range subs {
		t.walk(root, sub, above)
	}
}

// read lists a directory by name, as far as there is room.
func (t *tree) read(dir string) []os.DirEntry {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []os.DirEntry
	for {
		some, err := f.ReadDir(512)
		list = append(list, some...)
		t.entries += len(some)
		if t.entries > maxEntries {
			t.full = true
			break
		}
		if err != nil || len(some) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				t.full = true
			}
			break
		}
	}
	slices.SortFunc(list, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}
