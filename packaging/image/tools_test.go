package image_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// unpackTools takes the containers' image out of the tools disk.
func unpackTools(t *testing.T) (root, metadata string) {
	t.Helper()
	dir := t.TempDir()
	for name, to := range map[string]*string{"image/rootfs.squashfs": &root, "image/metadata.tar.xz": &metadata} {
		*to = filepath.Join(dir, filepath.Base(name))
		f, err := os.Create(*to)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("rdsquashfs", "--cat", name, filepath.Join(imageDir(t), image.ToolsFile))
		cmd.Stdout, cmd.Stderr = f, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return root, metadata
}

func TestToolsAreAgentsAndTheContainersImage(t *testing.T) {
	tools := filepath.Join(imageDir(t), image.ToolsFile)
	checkSquashfs(t, tools)
	want := map[string]string{
		"bin": "dir 0755 0 0", "image": "dir 0755 0 0",
		"bin/tremplin": "file 0755 0 0", "bin/garcon": "file 0755 0 0", "bin/vshd": "file 0755 0 0",
		"image/metadata.tar.xz": "file 0644 0 0", "image/rootfs.squashfs": "file 0644 0 0",
	}
	got := describe(t, tools)
	delete(got, "")
	delete(got, "/")
	for name, line := range got {
		got[name] = strings.Join(strings.Fields(line)[:4], " ")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestContainersImageIsOneOfIncus(t *testing.T) {
	_, metadata := unpackTools(t)
	list, err := exec.Command("tar", "-tf", metadata).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(list)); !cmp.Equal(got, []string{"metadata.yaml", "templates/", "templates/hostname.tpl", "templates/hosts.tpl"}) {
		t.Errorf("metadata of %q", got)
	}
	text, err := exec.Command("tar", "-xOf", metadata, "metadata.yaml").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^architecture: x86_64\ncreation_date: [0-9]{10}$`).Match(text) || bytes.ContainsRune(text, '@') {
		t.Errorf("it says\n%s", text)
	}
}

func TestContainersRootHasWhatItsUserNeedsAndNothingOfTheBuilder(t *testing.T) {
	root, _ := unpackTools(t)
	checkSquashfs(t, root)
	listing := describe(t, root)
	for name, want := range map[string]string{
		"opt/google/cros-containers":          "dir 0755 0 0",
		"etc/resolv.conf":                     "slink 0777 0 0 /run/systemd/resolve/stub-resolv.conf",
		"usr/sbin/init":                       "slink 0777 0 0 ../lib/systemd/systemd",
		"usr/bin/sudo":                        "file 04755 0 0",
		"usr/bin/pkcon":                       "file 0755 0 0",
		"usr/sbin/sshd":                       "file 0755 0 0",
		"usr/share/mime/mime.cache":           "file 0644 0 0",
		"etc/sudoers.d":                       "dir 0755 0 0",
		"etc/polkit-1/rules.d":                "dir 0750 0",
		"etc/sudoers.d/10-auberge":            "file 0644 0 0",
		"usr/lib/systemd/systemd-udevd":       "slink",
		"usr/lib/systemd/systemd-networkd":    "file 0755 0 0",
		"etc/systemd/network/10-eth0.network": "file 0644 0 0",
		"etc/systemd/user/default.target.wants/cros-garcon.service": "slink 0777 0 0 /usr/lib/systemd/user/cros-garcon.service",
		"usr/lib/systemd/user/cros-garcon.service":                  "file 0644 0 0",
	} {
		if got := listing[name]; !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	forbidden := regexp.MustCompile(`^(boot/.|tmp/|etc/ssh/ssh_host_|home/.|etc/dpkg/dpkg.cfg.d/99|` +
		`usr/share/(man|doc|locale)/.|etc/apt/sources.list.d/|etc/apt/apt.conf.d/99|` +
		`var/lib/apt/lists/.*(Packages|Release)|var/cache/apt/.*\.(deb|bin)$)`)
	for name := range listing {
		if forbidden.MatchString(name) {
			t.Errorf("%s should not be in the root", name)
		}
	}
	for _, file := range []string{"etc/machine-id", "etc/apt/sources.list"} {
		if got := rdsquashfs(t, "--cat", file, root); got != "" {
			t.Errorf("%s holds %q, want nothing", file, got)
		}
	}
	// The id is that of whoever the container is for.
	if passwd := rdsquashfs(t, "--cat", "etc/passwd", root); strings.Contains(passwd, ":1000:") {
		t.Errorf("somebody has the user's id:\n%s", passwd)
	}
}
