package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unitDir has the units, as templates: @LIBEXECDIR@ and the like stand for where
// things are installed.
const unitDir = "systemd"

// exposure is the most that `systemd-analyze security` may find of each
// service, times ten.
var exposure = map[string]int{
	"vm-concierge.service":   20,
	"vm-cicerone.service":    15,
	"auberge-helper.service": 30,
	"auberge-vm@.service":    20,
	// It runs as root for some seconds of a shutdown, to call one method.
	"auberge-guests.service": 30,
}

// render fills in the templates as an installation does, with programs that
// are there, and returns the directory.
func render(t *testing.T) string {
	t.Helper()
	dir, libexec := t.TempDir(), t.TempDir()
	for _, program := range []string{"vm_concierge", "vm_cicerone", "auberge-vm", "auberge-helper"} {
		if err := os.WriteFile(filepath.Join(libexec, program), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	places := strings.NewReplacer("@LIBEXECDIR@", libexec, "@BINDIR@", libexec, "@SYSCONFDIR@", "/etc")
	for _, unit := range units(t, "*.*") {
		b, err := os.ReadFile(filepath.Join(unitDir, unit))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, unit), []byte(places.Replace(string(b))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// units are the unit files that match a pattern.
func units(t *testing.T, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(unitDir, pattern))
	if err != nil || len(all) == 0 {
		t.Fatalf("no unit is like %s: %v", pattern, err)
	}
	for i := range all {
		all[i] = filepath.Base(all[i])
	}
	return all
}

// A service that nobody has set a limit for is not shipped.
func TestExposure(t *testing.T) {
	dir := render(t)
	for _, unit := range units(t, "*.service") {
		limit, ok := exposure[unit]
		if !ok {
			t.Errorf("%s has no limit in this test", unit)
			continue
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager",
			"--threshold="+strconv.Itoa(limit), filepath.Join(dir, unit)).CombinedOutput()
		if err != nil {
			t.Errorf("%s is more exposed than %d.%d: %v\n%s", unit, limit/10, limit%10, err, out)
		}
	}
}

func TestVerify(t *testing.T) {
	dir := render(t)
	for _, unit := range units(t, "*.*") {
		// Only what it says of ours counts: other units may not be those that a
		// Debian has.
		cmd := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, unit))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, _ := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, dir) || strings.HasPrefix(line, strings.TrimSuffix(unit, ".service")) {
				if !strings.Contains(line, "ignoring: identity") { // "identity" came with systemd 257
					t.Errorf("%s: %s", unit, line)
				}
			}
		}
	}
}

// sandbox are the options of systemd that take something from a service. Each
// service has each, or says why not.
var sandbox = []string{
	"CapabilityBoundingSet", "NoNewPrivileges", "UMask", "DevicePolicy", "KeyringMode", "LockPersonality",
	"MemoryDenyWriteExecute", "PrivateDevices", "PrivateIPC", "PrivateNetwork", "PrivateTmp", "PrivateUsers",
	"ProcSubset", "ProtectClock", "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs",
	"ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "RemoveIPC",
	"RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
	"SystemCallArchitectures", "SystemCallFilter", "InaccessiblePaths",
}

func TestEveryExceptionHasAReason(t *testing.T) {
	for _, unit := range units(t, "*.service") {
		b, err := os.ReadFile(filepath.Join(unitDir, unit))
		if err != nil {
			t.Fatal(err)
		}
		for _, option := range sandbox {
			if !regexp.MustCompile(`(?m)^(#.*\b)?` + option + `=`).Match(b) {
				t.Errorf("%s neither sets %s= nor says why it cannot", unit, option)
			}
		}
	}
}

// Nothing that a template stands for is forgotten.
func TestPlaceholders(t *testing.T) {
	for _, unit := range units(t, "*.*") {
		b, err := os.ReadFile(filepath.Join(unitDir, unit))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range regexp.MustCompile(`@[A-Z]+@`).FindAllString(string(b), -1) {
			if p != "@LIBEXECDIR@" && p != "@BINDIR@" && p != "@SYSCONFDIR@" {
				t.Errorf("%s: nobody fills in %s", unit, p)
			}
		}
	}
}

// Instances of a template share a dynamic user unless its name says which one
// it is: a VM that was broken into would be the user of all others.
func TestEachVMHasAUser(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(unitDir, "auberge-vm@.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`DynamicUser=yes`, `User=\S*%i`, `RuntimeDirectory=\S+/%i`} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).Match(b) {
			t.Errorf("no line is like %s", line)
		}
	}
}

// What breaks out of a VM finds no socket of the host's services, and what is
// run for the unit's end, which has the same /run, finds what it removes there.
func TestVMSeesNoServices(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(unitDir, "auberge-vm@.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := string(b)
	if !strings.Contains(unit, "\nTemporaryFileSystem=/run:ro\n") {
		t.Error("a VM sees all of /run")
	}
	bound := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^Bind(?:ReadOnly)?Paths=(.*)$`).FindAllStringSubmatch(unit, -1) {
		for _, path := range strings.Fields(m[1]) {
			bound[strings.TrimPrefix(path, "-")] = true
		}
	}
	want := map[string]bool{"/run/systemd/notify": true, "/run/systemd/journal": true, "/run/systemd/system.control": true}
	if diff := cmp.Diff(want, bound); diff != "" {
		t.Errorf("what a VM sees of /run: %s", diff)
	}
	for _, m := range regexp.MustCompile(`(?m)^Exec\w+=.*?(/run/\S+)`).FindAllStringSubmatch(unit, -1) {
		if !bound[filepath.Dir(m[1])] {
			t.Errorf("%s is not there for the command that names it", m[1])
		}
	}
}
