// Package packaging holds the files that are installed beside the programs,
// of which the programs themselves read one: the configuration file, which
// says what settings there are.
package packaging

import (
	_ "embed"
	"regexp"
	"strings"
)

// Config is the configuration file as it is installed: every setting of every
// daemon with its default, commented out ("#name = value").
//
//go:embed auberge.conf
var Config string

// A Setting is a line of Config.
type Setting struct {
	// Section is the daemon's, empty for what is for all daemons.
	Section, Name, Default string
}

var setting = regexp.MustCompile(`^#([a-z][a-z0-9-]*) =(?: (.*))?$`)

// Settings lists the settings in Config.
func Settings() []Setting {
	var all []Setting
	section := ""
	for line := range strings.Lines(Config) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		if m := setting.FindStringSubmatch(line); m != nil {
			all = append(all, Setting{section, m[1], m[2]})
		}
	}
	return all
}
