package icons

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

const (
	fallback  = "hicolor"
	maxThemes = 32 // in a chain of inheritance
	maxKept   = 64 // indexes that are remembered
)

// ErrNoIcon says that no picture was found.
var ErrNoIcon = errors.New("no icon")

// Config says where icons are.
type Config struct {
	// Home is the user's directory.
	Home string
	// ConfigHome holds the user's settings (~/.config).
	ConfigHome string
	// DataDirs hold the directories icons and pixmaps, the user's first.
	DataDirs []string
	// Pixmaps is where icons are that belong to no theme; empty is
	// /usr/share/pixmaps.
	Pixmaps string
}

// A Finder looks icons up. Its methods may be used at once.
type Finder struct {
	config Config
	bases  []string // where themes are, in order

	mu   sync.Mutex
	kept map[string]index // by file
}

// An index is an index.theme, and by what it is known to be the same.
type index struct {
	size    int64
	changed time.Time
	theme   *theme // nil when it cannot be read
}

// NewFinder returns a finder that has read nothing yet.
func NewFinder(c Config) *Finder {
	c.Pixmaps = cmp.Or(c.Pixmaps, "/usr/share/pixmaps")
	f := &Finder{config: c, kept: map[string]index{}}
	f.bases = append(f.bases, filepath.Join(c.Home, ".icons"))
	for _, dir := range c.DataDirs {
		f.bases = append(f.bases, filepath.Join(dir, "icons"))
	}
	f.bases = append(f.bases, c.Pixmaps)
	return f
}

// Find returns the picture for the key Icon of an application: an absolute
// path, or a name to be found at this size and scale.
func (f *Finder) Find(ctx context.Context, icon string, size, scale int) (*Picture, error) {
	switch {
	case icon == "":
		return nil, fmt.Errorf("%w is named", ErrNoIcon)
	case strings.ContainsRune(icon, 0):
		return nil, fmt.Errorf("%w: %q is no name", ErrNoIcon, icon)
	case filepath.IsAbs(icon):
		p, err := load(icon)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoIcon, err)
		}
		return p, nil
	case strings.Contains(icon, "/"):
		return nil, fmt.Errorf("%w: %q is neither a name nor an absolute path", ErrNoIcon, icon)
	}
	// Some write a file's name where a name belongs.
	for _, ext := range []string{".png", ".svg", ".xpm"} {
		if name, ok := strings.CutSuffix(icon, ext); ok && name != "" {
			icon = name
			break
		}
	}
	for _, name := range f.chain() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p := f.inTheme(ctx, name, icon, size, scale); p != nil {
			return p, nil
		}
	}
	for _, base := range f.bases {
		if p := either(filepath.Join(base, icon)); p != nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%w %q in %s", ErrNoIcon, icon, strings.Join(f.bases, ", "))
}

// chain is the order of themes: the user's, depth first its parents, what GTK
// has without a setting, and last hicolor. A theme that inherits from itself
// is there once.
func (f *Finder) chain() []string {
	var list []string
	seen := map[string]bool{"": true, fallback: true}
	var add func(string)
	add = func(name string) {
		if seen[name] || len(list) >= maxThemes || !local(name) || strings.Contains(name, "/") {
			return
		}
		seen[name] = true
		t := f.theme(name)
		if t == nil {
			return
		}
		list = append(list, name)
		for _, parent := range t.inherits {
			add(parent)
		}
	}
	add(f.configured())
	add("Adwaita")
	return append(list, fallback)
}

// configured is the theme in the settings of GTK, the user's or the system's.
func (f *Finder) configured() string {
	for _, dir := range []string{f.config.ConfigHome, "/etc"} {
		for _, version := range []string{"gtk-4.0", "gtk-3.0"} {
			data, _, err := keyfile.Read(filepath.Join(dir, version, "settings.ini"), 64<<10)
			if err != nil {
				continue
			}
			name := ""
			keyfile.Scan(data, func(l keyfile.Line) error { // what is readable of it
				if l.Group == "Settings" && l.Key == "gtk-icon-theme-name" {
					name = strings.Trim(strings.TrimSpace(keyfile.Unescape(l.Value)), `"`)
				}
				return nil
			})
			if name != "" {
				return name
			}
		}
	}
	return ""
}

// theme returns a theme's index, the first that there is, or nil.
func (f *Finder) theme(name string) *theme {
	for _, base := range f.bases {
		path := filepath.Join(base, name, "index.theme")
		fi, err := os.Stat(path)
		if err != nil {
			continue
		}
		f.mu.Lock()
		kept, ok := f.kept[path]
		f.mu.Unlock()
		if ok && kept.size == fi.Size() && kept.changed.Equal(fi.ModTime()) {
			return kept.theme
		}
		kept = index{size: fi.Size(), changed: fi.ModTime()}
		if data, _, err := keyfile.Read(path, maxIndex); err == nil {
			kept.theme, _ = parseTheme(data)
		}
		f.mu.Lock()
		if len(f.kept) >= maxKept {
			clear(f.kept)
		}
		f.kept[path] = kept
		f.mu.Unlock()
		return kept.theme
	}
	return nil
}

// inTheme looks in one theme: in the directories for this size, and then in
// the others, the closest first. A theme may be spread over several bases.
func (f *Finder) inTheme(ctx context.Context, name, icon string, size, scale int) *Picture {
	t := f.theme(name)
	if t == nil {
		return nil
	}
	var roots []string
	for _, base := range f.bases {
		root := filepath.Join(base, name)
		if fi, err := os.Stat(root); err == nil && fi.IsDir() {
			roots = append(roots, root)
		}
	}
	type candidate struct {
		dir      string
		distance int
	}
	order := make([]candidate, 0, len(t.dirs))
	for _, d := range t.dirs {
		if d.matches(size, scale) {
			order = append(order, candidate{d.name, -1})
		} else {
			order = append(order, candidate{d.name, d.distance(size, scale)})
		}
	}
	slices.SortStableFunc(order, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	for _, c := range order {
		if ctx.Err() != nil {
			return nil
		}
		for _, root := range roots {
			if p := either(filepath.Join(root, c.dir, icon)); p != nil {
				return p
			}
		}
	}
	return nil
}

// either loads a PNG, else an SVG.
func either(path string) *Picture {
	for _, ext := range []string{".png", ".svg"} {
		if p, err := load(path + ext); err == nil {
			return p
		}
	}
	return nil
}
