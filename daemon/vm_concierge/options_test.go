package main

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/auberge-vm/auberge/concierge"
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

func TestOptionsAreChecked(t *testing.T) {
	tests := map[string][]string{
		"--accel":        {"--accel", "xen"},
		"--vsock":        {"--vsock", "tcp"},
		"--network":      {"--network", "bridge"},
		"--logout":       {"--logout", "lock"},
		"--address-pool": {"--address-pool", "10.0.0.0"},
		"--helper":       {"--network", "tap"},
		"--network tap":  {"--vm-units", "--network", "user"},
	}
	if os.Geteuid() == 0 {
		tests["create a system user"] = []string{"--vm-user", "nobody-of-this-name"}
		tests["must not run as root"] = []string{"--vm-user", "root"}
	}
	for want, args := range tests {
		if _, err := configOf(t, append([]string{"--vm-user", "nobody"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
