package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// copySource makes a copy of the source without anything that was built, with
// other dates and modes than here.
func copySource(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "somewhere", "else")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	script := `cd "$1" && git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf - |
		tar -C "$2" -xf - --touch`
	run(t, "bash", "-o", "pipefail", "-c", script, "copy", source, dir)
	return dir
}

// The same source gives the same bytes: elsewhere, at another time, for a user
// with other habits, and without any network, when the modules, the guest
// image's base and Debian's package are in their caches.
func TestTheSameAgainOffline(t *testing.T) {
	sums, err := os.ReadFile(filepath.Join(packages, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimSuffix(strings.TrimSpace(run(t, "dpkg-deb", "--field", find(t, "auberge_*.deb"), "Version")), "-1")
	date := run(t, "rpm", "-qp", "--queryformat", "%{BUILDTIME}", find(t, "auberge-[0-9]*.rpm"))
	dir := copySource(t)
	// No network: not even one to this machine's own addresses.
	cmd := exec.Command("unshare", "--map-root-user", "--net", "sh", "-c", "umask 077 && exec make --no-print-directory packages")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH="+date,
		"GOPROXY=off", "GOFLAGS=-buildvcs=false", "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "LC_ALL=", "USER=somebody")
	if out, err := try(t, cmd); err != nil {
		t.Fatalf("make packages without a network: %v\n%s", err, out)
	}
	again, err := os.ReadFile(filepath.Join(dir, "bin/packages/SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(sums), string(again)); diff != "" {
		t.Errorf("the same source gave something else:\n%s", diff)
	}
}
