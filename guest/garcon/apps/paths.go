package apps

import (
	"cmp"
	"path/filepath"
	"slices"
)

// maxDataDirs bounds the directories of data of an environment.
const maxDataDirs = 64

// Paths are the directories of the XDG base directory specification.
type Paths struct {
	Home       string
	ConfigHome string
	DataDirs   []string // the user's first
}

// PathsFrom takes them from an environment. Those that are not absolute do not
// count.
func PathsFrom(home string, getenv func(string) string) Paths {
	p := Paths{Home: home, ConfigHome: filepath.Join(home, ".config")}
	if dir := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		p.ConfigHome = filepath.Clean(dir)
	}
	data := filepath.Join(home, ".local/share")
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		data = dir
	}
	list := cmp.Or(getenv("XDG_DATA_DIRS"), "/usr/local/share:/usr/share")
	for _, dir := range append([]string{data}, filepath.SplitList(list)...) {
		dir = filepath.Clean(dir)
		if filepath.IsAbs(dir) && !slices.Contains(p.DataDirs, dir) && len(p.DataDirs) < maxDataDirs {
			p.DataDirs = append(p.DataDirs, dir)
		}
	}
	return p
}

// applications are the directories with .desktop files.
func (p Paths) applications() []string {
	var list []string
	for _, dir := range p.DataDirs {
		list = append(list, filepath.Join(dir, "applications"))
	}
	return list
}
