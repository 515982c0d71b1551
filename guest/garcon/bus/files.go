package bus

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

const (
	maxNames      = 256 // that SaveFiles saves at once
	maxFiles      = 4096
	maxPath       = 4096
	maxExtensions = 256
)

// get is an option's value, or nothing when it has another type.
func get[T any](o options, name string) T {
	v, _ := o[name].Value().(T)
	return v
}

// pathOf reads a path, which comes as bytes that end with a NUL.
func pathOf(o options, name string) string {
	path := strings.TrimRight(string(get[[]byte](o, name)), "\x00")
	if len(path) > maxPath || !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || !utf8.ValidString(path) {
		return ""
	}
	return path
}

func folder(o options) string { return pathOf(o, "current_folder") }

// A filter is a name with patterns: of files' names (0) or of MIME types (1).
type filter struct {
	Name     string
	Patterns []struct {
		Kind uint32
		Text string
	}
}

// extensions are those that a program's filters let through, with commas
// between. When a filter is none of extensions, everything is let through.
func extensions(o options, types func() map[string]string) string {
	var list []filter
	if v, ok := o["current_filter"]; ok {
		var one filter
		if dbus.Store([]any{v.Value()}, &one) == nil {
			list = append(list, one)
		}
	} else if v, ok := o["filters"]; ok {
		dbus.Store([]any{v.Value()}, &list)
	}
	seen := map[string]bool{}
	var byType map[string]string
	for _, f := range list {
		for _, p := range f.Patterns {
			switch p.Kind {
			case 0:
				ext, ok := strings.CutPrefix(p.Text, "*.")
				if !ok || ext == "" || strings.ContainsAny(ext, "*?[]{},/\x00") || !utf8.ValidString(ext) || len(ext) > 64 {
					return ""
				}
				seen[ext] = true
			case 1:
				if byType == nil {
					byType = types()
				}
				found := false
				for ext, name := range byType {
					if ok, _ := filepath.Match(p.Text, name); ok {
						seen[ext], found = true, true
					}
				}
				if !found {
					return ""
				}
			default:
				return ""
			}
		}
	}
	if len(seen) > maxExtensions {
		return ""
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), ",")
}

// uris are what the portal answers with: the chosen files, or names in the
// chosen directory.
func uris(files, names []string) []string {
	var list []string
	for _, file := range files[:min(len(files), maxFiles)] {
		uri := file
		if filepath.IsAbs(file) {
			uri = desktop.FileURI(file)
		} else if !strings.HasPrefix(file, "file:///") {
			continue
		}
		if names == nil {
			list = append(list, uri)
			continue
		}
		for _, name := range names {
			list = append(list, strings.TrimSuffix(uri, "/")+strings.TrimPrefix(desktop.FileURI("/"+name), "file://"))
		}
		break
	}
	return list
}
