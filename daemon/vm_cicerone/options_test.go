package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/daemon/setup/setuptest"
	"github.com/auberge-vm/auberge/packaging"
)

func parse(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	var o options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &o, o.finish(f)
}

// Every setting is in the file that is installed, with its default.
func TestConfigurationFileIsComplete(t *testing.T) {
	var o options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(f)
	setuptest.Documented(t, f, "vm_cicerone")
}

// The file that is installed can be used as it is, and so can its lines when
// their comments are taken away.
func TestInstalledConfiguration(t *testing.T) {
	all := packaging.Config
	for _, s := range packaging.Settings() {
		all = strings.Replace(all, "\n#"+s.Name+" =", "\n"+s.Name+" =", -1)
	}
	for _, text := range []string{packaging.Config, all} {
		path := filepath.Join(t.TempDir(), "auberge.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(t, "--config", path); err != nil {
			t.Error(err)
		}
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/home/x/state")
	for want, args := range map[string][]string{
		"/var/lib/auberge-cicerone":      {},
		"/home/x/state/auberge-cicerone": {"--bus", "session"},
		"/x":                             {"--bus", "session", "--state-dir", "/x"},
	} {
		if o, err := parse(t, args...); err != nil || o.stateDir != want {
			t.Errorf("%q: %q, %v", args, o.stateDir, err)
		}
	}
}
