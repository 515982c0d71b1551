package apps

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// A watch notices what may change the list of applications or the MIME types:
// in the directories of applications and all beneath them, in those of the
// caches, and, where one of these is missing, that it comes.
type watch struct {
	log   *slog.Logger
	w     *fsnotify.Watcher
	paths Paths

	mu   sync.Mutex
	apps map[string]inode // directories with .desktop files
	mime map[string]inode // directories with a cache
	// ways are names that lead to directories that are watched or to be: when
	// one of them comes or goes, all is looked at again.
	ways map[string]bool
	// above are the directories that these names are in.
	above map[string]bool
	// partial says that something could not be watched.
	partial bool
}

func newWatch(log *slog.Logger, paths Paths) (*watch, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &watch{log: log, w: w, paths: paths}, nil
}

func (w *watch) close() { w.w.Close() }

// A change is what an event may have changed.
type change struct{ apps, mime bool }

func (c change) any() bool { return c.apps || c.mime }

// changed judges an event.
func (w *watch) changed(e fsnotify.Event) change {
	dir, name := filepath.Dir(e.Name), filepath.Base(e.Name)
	gone := e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)
	w.mu.Lock()
	_, isApps := w.apps[e.Name]
	_, isMime := w.mime[e.Name]
	_, inApps := w.apps[dir]
	_, inMime := w.mime[dir]
	way, above := w.ways[e.Name], w.above[e.Name]
	w.mu.Unlock()
	c := change{mime: inMime && name == "mime.cache"}
	if way && (gone || e.Has(fsnotify.Create)) || gone && (isApps || isMime || above) {
		return change{apps: true, mime: true}
	}
	if inApps {
		c.apps = strings.HasSuffix(name, ".desktop") || e.Has(fsnotify.Create) && isDir(e.Name)
	}
	return c
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// sync watches what there is now, and returns it. What comes while it is at
// work is either in what it returns or makes an event.
func (w *watch) sync() *tree {
	var t *tree
	partial := false
	for range 5 { // as long as directories come
		t = walk(w.paths.applications())
		again := false
		apps, mime, ways := map[string]inode{}, map[string]inode{}, map[string]bool{}
		listed := map[string]bool{}
		for _, dir := range w.w.WatchList() {
			listed[dir] = true
		}
		for _, dir := range t.dirs {
			w.add(dir, listed, apps, &again, &partial)
		}
		for _, data := range w.paths.DataDirs {
			cache := filepath.Join(data, "mime")
			if isDir(cache) {
				w.add(cache, listed, mime, &again, &partial)
			}
			w.addWay(filepath.Join(data, "applications"), listed, ways, &again, &partial)
			w.addWay(cache, listed, ways, &again, &partial)
		}
		w.drop(apps, mime, ways)
		if !again {
			break
		}
	}
	w.mu.Lock()
	w.partial = partial
	w.mu.Unlock()
	return t
}

// add watches a directory, unless it is watched already and still the same.
func (w *watch) add(dir string, listed map[string]bool, to map[string]inode, again, partial *bool) {
	fi, err := os.Stat(dir)
	if err != nil {
		return
	}
	id := inodeOf(fi)
	to[dir] = id
	w.mu.Lock()
	had, known := w.apps[dir]
	if !known {
		had, known = w.mime[dir]
	}
	w.mu.Unlock()
	switch {
	case !listed[dir]:
	case !known: // watched as a way to another
		return
	case had == id:
		return
	default:
		w.w.Remove(dir)
	}
	w.watchDir(dir, partial)
	listed[dir] = true
	*again = true
}

// addWay watches above a directory: where it hangs, and if that is not there,
// as near as there is something. The user's own directory is watched in that
// case only, because much happens there.
func (w *watch) addWay(dir string, listed map[string]bool, ways map[string]bool, again, partial *bool) {
	for above := filepath.Dir(dir); ; dir, above = above, filepath.Dir(above) {
		ways[dir] = true
		missing := !isDir(dir)
		if isDir(above) {
			if !listed[above] {
				w.watchDir(above, partial)
				listed[above] = true
				// It may have come between the two looks.
				*again = *again || missing
			}
			return
		}
		if above == dir {
			return
		}
	}
}

func (w *watch) watchDir(dir string, partial *bool) {
	err := w.w.Add(dir)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return
	}
	w.mu.Lock()
	told := w.partial
	w.mu.Unlock()
	if !told && !*partial {
		w.log.Warn("a directory of applications cannot be watched; it is looked at from time to time", "dir", dir, "err", err)
	}
	*partial = true
}

// drop takes over what is watched now, and watches nothing else.
func (w *watch) drop(apps, mime map[string]inode, ways map[string]bool) {
	above := map[string]bool{}
	for way := range ways {
		above[filepath.Dir(way)] = true
	}
	w.mu.Lock()
	w.apps, w.mime, w.ways, w.above = apps, mime, ways, above
	w.mu.Unlock()
	for _, dir := range w.w.WatchList() {
		_, isApps := apps[dir]
		_, isMime := mime[dir]
		if !isApps && !isMime && !above[dir] {
			w.w.Remove(dir)
		}
	}
}

func (w *watch) isPartial() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.partial
}
