package packages

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Debian's checker has nothing to say, but for what the packages explain.
func TestLintian(t *testing.T) {
	for _, pattern := range []string{"auberge_*.deb", "auberge-image_*.deb"} {
		// As root it says that it should not be; that is no matter here.
		cmd := exec.Command("lintian", "--tag-display-limit", "0", "--fail-on", "error,warning", find(t, pattern))
		if out, err := try(t, cmd); err != nil {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	}
}

// The fields by which Debian decides what is needed and who may be asked.
func TestDebFields(t *testing.T) {
	deb := find(t, "auberge_*.deb")
	for field, want := range map[string]string{
		"Package": "auberge", "Architecture": "amd64", "Section": "admin", "Priority": "optional",
		"Recommends": "auberge-image, vhost-device-vsock",
	} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "--field", deb, field)); got != want {
			t.Errorf("%s: %q, not %q", field, got, want)
		}
	}
	depends := run(t, "dpkg-deb", "--field", deb, "Depends")
	for _, want := range []string{"qemu-system-x86", "polkitd", "systemd", "dbus-system-bus"} {
		if !strings.Contains(depends, want) {
			t.Errorf("it does not depend on %s: %s", want, depends)
		}
	}
	if got := strings.TrimSpace(run(t, "dpkg-deb", "--info", deb, "conffiles")); got != "/etc/auberge/auberge.conf" {
		t.Errorf("conffiles: %q", got)
	}
	if out, err := try(t, exec.Command("dpkg", "--compare-versions", run(t, "dpkg-deb", "--field", deb, "Version"), "gt", "0.3.0")); err != nil {
		t.Errorf("its version is no newer than 0.3.0: %v %s", err, out)
	}
}

// rpm's own tools take the .rpm: whole, with sane fields, and its files arrive
// with the modes and contents that it says. No system with rpm has run it.
func TestRPM(t *testing.T) {
	own, image := find(t, "auberge-[0-9]*.rpm"), find(t, "auberge-image-*.rpm")
	for _, rpm := range []string{own, image} {
		if out := run(t, "rpm", "--checksig", "--nosignature", rpm); !strings.Contains(out, "digests OK") {
			t.Errorf("%s", out)
		}
	}
	fields := run(t, "rpm", "-qp", "--queryformat", "%{NAME} %{ARCH} %{LICENSE} %{BUILDHOST}\n%{DESCRIPTION}", own)
	if !strings.HasPrefix(fields, "auberge x86_64 Apache-2.0 localhost\n") || strings.Contains(fields, "\n.\n") {
		t.Errorf("fields: %s", fields)
	}
	requires := run(t, "rpm", "-qp", "--requires", own)
	for _, want := range []string{"qemu-system-x86-core", "polkit", "systemd", "dbus"} {
		if !strings.Contains(requires, want+"\n") {
			t.Errorf("it does not require %s: %s", want, requires)
		}
	}
	if got := run(t, "rpm", "-qp", "--configfiles", own); got != "/etc/auberge/auberge.conf\n" {
		t.Errorf("configuration files: %s", got)
	}
	// Scripts are for a shell, and a shell can read them.
	scripts := run(t, "rpm", "-qp", "--queryformat", "%{POSTINPROG} %{PREUNPROG} %{POSTUNPROG}", own)
	if scripts != "/bin/sh /bin/sh /bin/sh" {
		t.Errorf("scripts are run by %s", scripts)
	}
	for _, tag := range []string{"POSTIN", "PREUN", "POSTUN"} {
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(run(t, "rpm", "-qp", "--queryformat", "%{"+tag+"}", own))
		if out, err := try(t, cmd); err != nil {
			t.Errorf("%s: %v %s", tag, err, out)
		}
	}

	root := t.TempDir()
	run(t, "rpm", "--root", root, "--install", "--nodeps", "--noscripts", own, image)
	if out, err := try(t, exec.Command("rpm", "--root", root, "--verify", "--nodeps", "auberge", "auberge-image")); err != nil {
		t.Errorf("what was installed is not what was packed: %v\n%s", err, out)
	}
	run(t, "rpm", "--root", root, "--erase", "--noscripts", "auberge", "auberge-image")
	for _, path := range []string{"etc/auberge", "usr/libexec/auberge", "usr/share/auberge", "usr/share/doc/auberge"} {
		if _, err := os.Stat(filepath.Join(root, path)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// The sums beside the packages are theirs.
func TestSums(t *testing.T) {
	sums, err := os.ReadFile(filepath.Join(packages, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(sums), "\n"); n != 5 {
		t.Errorf("%d sums:\n%s", n, sums)
	}
	for line := range strings.Lines(string(sums)) {
		if _, err := hex.DecodeString(strings.Fields(line)[0]); err != nil {
			t.Error(err)
		}
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	cmd.Dir = packages
	if out, err := try(t, cmd); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
