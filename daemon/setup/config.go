package setup

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/packaging"
)

// LoadConfig sets a daemon's flags from a file of "flag = value" lines. What
// stands before the first section is for all daemons, and each takes of it what
// it has; what stands in a daemon's section is for that one alone. A later
// line wins over an earlier one, a flag that is a list takes them all, and the
// command line wins over the file. Empty lines and lines that begin with # say
// nothing.
func LoadConfig(f *pflag.FlagSet, path, daemon string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer file.Close()
	sections := sections()
	given := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) { given[flag.Name] = true })
	section, n := "", 0
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		n++
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			name, ok := sectionName(line)
			if !ok || !slices.Contains(sections, name) && name != daemon {
				return fmt.Errorf("%s:%d: there is no section %s; the sections are [%s]", path, n, line, strings.Join(sections, "], ["))
			}
			section = name
			continue
		}
		if section != "" && section != daemon {
			continue // the other daemon looks at it
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		own := f.Lookup(name) != nil && name != "config" && name != "help"
		switch {
		case !ok, !own && (section == daemon || !anyDaemons(name)):
			return fmt.Errorf("%s:%d: %q is no setting; settings are the flags without their dashes, as in name = value", path, n, line)
		case !own, given[name]:
			continue
		}
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("%s:%d: %s: %w", path, n, name, err)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", path, n+1, err)
	}
	return nil
}

func sectionName(line string) (string, bool) {
	name, ok := strings.CutPrefix(line, "[")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(name, "]")
}

// sections are those of the file that is installed.
func sections() []string {
	var all []string
	for _, s := range packaging.Settings() {
		if s.Section != "" {
			all = append(all, s.Section)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// anyDaemons says whether some daemon has a setting: the file that is
// installed lists all.
func anyDaemons(name string) bool {
	return slices.ContainsFunc(packaging.Settings(), func(s packaging.Setting) bool { return s.Name == name })
}
