package setup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestLookupUser(t *testing.T) {
	for _, name := range []string{"root", "0"} {
		cred, err := LookupUser(name)
		if err != nil || cred.UID != 0 || cred.GID != 0 || !slices.Contains(cred.Groups, 0) {
			t.Errorf("%s: %+v, %v", name, cred, err)
		}
	}
	for _, name := range []string{"", "nobody-of-this-name", "4294967294", "-1"} {
		if cred, err := LookupUser(name); err == nil {
			t.Errorf("%q: %+v", name, cred)
		}
	}
}

func parse(t *testing.T, config string, args ...string) (*Options, error) {
	t.Helper()
	if config != "" {
		path := filepath.Join(t.TempDir(), "conf")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	var o Options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.AddFlags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &o, o.Finish(f, "vm_concierge")
}

func TestConfigurationFile(t *testing.T) {
	o, err := parse(t, "# a comment\n\n accel = kvm \nstate-dir=/srv/a = b\nvsock = kernel\n", "--vsock", "user")
	if err != nil {
		t.Fatal(err)
	}
	if o.Accel != "kvm" || o.StateDir != "/srv/a = b" || o.RuntimeDir != "/run/auberge" {
		t.Errorf("%+v", o)
	}
	if o.Vsock != "user" {
		t.Errorf("the file won over the command line: %q", o.Vsock)
	}
	for config, want := range map[string]string{
		"accel":                      `:1: "accel" is no setting`,
		"\nspeed = high":             `:2: "speed = high" is no setting`,
		"config = /etc/x":            "is no setting",
		"log-level = loud":           "log-level",
		"broadcast-signals":          "is no setting",
		"[vmm]":                      ":1: there is no section [vmm]; the sections are [",
		"[vm_concierge":              "there is no section [vm_concierge",
		"[]":                         "there is no section []",
		"[vm_concierge]\nlog = info": `:2: "log = info" is no setting`,
	} {
		if _, err := parse(t, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", config, err, want)
		}
	}
	// Later lines win, and what is for others is theirs, also before the first
	// section.
	o, err = parse(t, "accel = tcg\nmax-vms = 3\n[auberge-helper]\nspeed = high\n[vm_concierge]\naccel = kvm\n")
	if err != nil || o.Accel != "kvm" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parse(t, "", "--config", "/nowhere"); err == nil {
		t.Error("a missing file was ignored")
	}
}

func TestDirectories(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/home/a/state")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	o, err := parse(t, "", "--bus", "session")
	if err != nil || o.StateDir != "/home/a/state/auberge" || o.RuntimeDir != "/run/user/1/auberge" || !o.Broadcast {
		t.Errorf("on a session bus: %+v, %v", o, err)
	}
	o, err = parse(t, "")
	if err != nil || o.StateDir != "/var/lib/auberge" || o.RuntimeDir != "/run/auberge" || o.Broadcast {
		t.Errorf("on the system bus: %+v, %v", o, err)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if _, err := parse(t, "", "--bus", "session"); err == nil || !strings.Contains(err.Error(), "--runtime-dir") {
		t.Errorf("without a runtime directory: %v", err)
	}
}
