package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/daemon/setup/onbus"
	"github.com/auberge-vm/auberge/daemon/setup/setuptest"
	"github.com/auberge-vm/auberge/packaging"
)

func configOf(t *testing.T, args ...string) (concierge.Config, error) {
	t.Helper()
	var o options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(f)
	if err := f.Parse(append([]string{"--supervisor", "/bin/true"}, args...)); err != nil {
		t.Fatal(err)
	}
	return o.config(slog.New(slog.DiscardHandler))
}

// VMs run as a user of their own, whose group gets their directories; without
// privileges they run as the service's, and no group has a part in them.
func TestLauncher(t *testing.T) {
	cfg, err := configOf(t, "--vm-user", "nobody", "--qemu", "/opt/qemu")
	if err != nil {
		t.Fatal(err)
	}
	want := -1
	if os.Geteuid() == 0 {
		want = 65534
	}
	if cfg.VMGroup != want {
		t.Errorf("directories go to group %d, want %d", cfg.VMGroup, want)
	}
	if !slices.Contains(cfg.Launcher.Args, "/opt/qemu") || cfg.Launcher.Start == nil {
		t.Errorf("launcher %+v", cfg.Launcher)
	}
}

// Units have users of their own: the service needs to know none, and no group
// has a part in what it keeps of a VM.
func TestLauncherOfUnits(t *testing.T) {
	cfg, err := configOf(t, "--vm-units", "--vm-user", "nobody-of-this-name", "--network", "none")
	if err != nil {
		t.Fatal(err)
	}
	u := cfg.Launcher.Units
	if u == nil || u.Manager == nil || u.Template != "auberge-vm@.service" || u.Dir != "/run/auberge-vm" || cfg.VMGroup != -1 {
		t.Errorf("units %+v, group %d", u, cfg.VMGroup)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	tests := map[string][]string{
		"--accel":        {"--accel", "xen"},
		"--vsock":        {"--vsock", "tcp"},
		"--network":      {"--network", "bridge"},
		"--image-update": {"--image-update", "never"},
		"--logout":       {"--logout", "lock"},
		"--address-pool": {"--address-pool", "10.0.0.0"},
		"--polkit":       {"--polkit", "on"},
		"--daemon-users": {"--daemon-users", "nobody-of-this-name"},
		"USER:vms=4":     {"--quota", "alice"},
		"--helper":       {"--network", "tap"},
		"--network tap":  {"--vm-units", "--network", "user"},
	}
	if os.Geteuid() == 0 {
		tests["create a system user"] = []string{"--vm-user", "nobody-of-this-name"}
		tests["must not run as root"] = []string{"--vm-user", "root"}
	}
	for want, args := range tests {
		_, err := configOf(t, append([]string{"--vm-user", "nobody"}, args...)...)
		if args[0] == "--polkit" || args[0] == "--daemon-users" {
			var o options
			f := pflag.NewFlagSet("test", pflag.ContinueOnError)
			o.addFlags(f)
			if err := f.Parse(args); err != nil {
				t.Fatal(err)
			}
			_, err = onbus.Options(&o.Common, &o.rights, slog.New(slog.DiscardHandler))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

// Every setting is in the file that is installed, with its default.
func TestConfigurationFileIsComplete(t *testing.T) {
	var o options
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.addFlags(f)
	setuptest.Documented(t, f, "vm_concierge")
}

// The file that is installed can be used as it is, and so can all of its lines
// when their comments are taken away, as an administrator would.
func TestInstalledConfiguration(t *testing.T) {
	load := func(text string) *options {
		t.Helper()
		path := filepath.Join(t.TempDir(), "auberge.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var o options
		f := pflag.NewFlagSet("test", pflag.ContinueOnError)
		o.addFlags(f)
		if err := f.Parse([]string{"--config", path, "--supervisor", "/bin/true", "--vm-user", "nobody"}); err != nil {
			t.Fatal(err)
		}
		if err := o.Finish(f, "vm_concierge"); err != nil {
			t.Fatal(err)
		}
		if _, err := o.config(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		return &o
	}
	load(packaging.Config)
	text := packaging.Config
	for _, s := range packaging.Settings() {
		text = strings.Replace(text, "\n#"+s.Name+" =", "\n"+s.Name+" =", 1)
	}
	load(text)
	o := load("log-level = debug\n[vm_concierge]\nmax-vms = 2\nmax-disk = 10G\nquota = root:vms=3\nquota = @root:disk=unlimited\n[auberge-helper]\nwhatever = it has\n")
	q, err := o.quota()
	if err != nil || q.Default.VMs != 2 || q.For(0) != (concierge.Limits{VMs: 3, Memory: concierge.Unlimited, Disk: concierge.Unlimited, Logs: defaultMaxLogs}) ||
		q.For(4000000001).Disk != 10<<30 || !strings.HasSuffix(q.Where, "auberge.conf") || o.LogLevel != slog.LevelDebug {
		t.Errorf("%+v, %v", q, err)
	}
}
