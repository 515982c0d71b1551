// Package setuptest holds what the tests of all daemons have in common.
package setuptest

import (
	"testing"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/packaging"
)

// Documented checks that the configuration file which is installed lists all
// flags of a daemon with their defaults, and nothing else for that daemon.
func Documented(t *testing.T, f *pflag.FlagSet, daemon string) {
	t.Helper()
	listed := map[string]bool{}
	for _, s := range packaging.Settings() {
		if s.Section != "" && s.Section != daemon {
			continue
		}
		if listed[s.Name] {
			t.Errorf("packaging/auberge.conf has %s twice", s.Name)
		}
		listed[s.Name] = true
		flag := f.Lookup(s.Name)
		want := ""
		if flag != nil {
			if want = flag.DefValue; want == "[]" {
				want = "" // a list without anything in it
			}
		}
		switch {
		case flag == nil && s.Section == daemon:
			t.Errorf("packaging/auberge.conf: [%s] has %s, which is no flag of it", daemon, s.Name)
		case flag != nil && s.Default != want:
			t.Errorf("packaging/auberge.conf: %s = %s, and its default is %q", s.Name, s.Default, want)
		}
	}
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "config" && flag.Name != "help" && !listed[flag.Name] {
			t.Errorf("packaging/auberge.conf does not list %s = %s for %s: %s", flag.Name, flag.DefValue, daemon, flag.Usage)
		}
	})
}
