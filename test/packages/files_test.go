package packages

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files are paths with their modes.
type files map[string]string

// installed is what make install leaves below a directory.
func installed(t *testing.T, args ...string) files {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("make", append([]string{"-C", source, "--no-print-directory", "DESTDIR=" + dir}, args...)...)
	if out, err := try(t, cmd); err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, out)
	}
	all := files{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		all[strings.TrimPrefix(path, dir)] = info.Mode().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var debLine = regexp.MustCompile(`(?m)^(\S+) (\S+) .* \.(/\S+)$`)

// inDeb lists a .deb's files, all of which must be root's.
func inDeb(t *testing.T, deb string) files {
	t.Helper()
	all := files{}
	for _, m := range debLine.FindAllStringSubmatch(run(t, "dpkg-deb", "--contents", deb), -1) {
		if m[2] != "root/root" {
			t.Errorf("%s belongs to %s", m[3], m[2])
		}
		if m[1][0] != 'd' {
			all[m[3]] = m[1]
		}
	}
	return all
}

func inRPM(t *testing.T, rpm string) files {
	t.Helper()
	all := files{}
	for line := range strings.Lines(run(t, "rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]", rpm)) {
		f := strings.Fields(line)
		if f[1] != "root/root" {
			t.Errorf("%s belongs to %s", f[2], f[1])
		}
		if f[0][0] != 'd' {
			all[f[2]] = f[0]
		}
	}
	return all
}

// without leaves out what only one kind of package has.
func (f files) without(patterns ...string) files {
	rest := maps.Clone(f)
	for path := range f {
		for _, p := range patterns {
			if ok, err := filepath.Match(p, path); err != nil || ok {
				delete(rest, path)
			}
		}
	}
	return rest
}

// Packages hold what make install installs: nothing more, nothing less, with
// the same modes. What differs is where a distribution wants licenses,
// changelogs and zsh's functions.
func TestFiles(t *testing.T) {
	own := []string{"/usr/share/doc/*/LICENSE", "/usr/share/doc/*/copyright", "/usr/share/doc/*/changelog.Debian.gz",
		"/usr/share/doc/*/third-party-licenses*", "/usr/share/licenses/*/*", "/usr/share/lintian/overrides/*", "/usr/share/zsh/*/_vmc"}
	for name, args := range map[string][]string{"auberge": {"install"}, "auberge-image": {"install-image"}} {
		t.Run(name, func(t *testing.T) {
			want := installed(t, append(args, "PREFIX=/usr")...).without(own...)
			deb, rpm := inDeb(t, find(t, name+"_*.deb")), inRPM(t, find(t, name+"-[0-9]*.rpm"))
			if diff := cmp.Diff(want, deb.without(own...)); diff != "" {
				t.Errorf("the .deb is not what make install installs:\n%s", diff)
			}
			if diff := cmp.Diff(want, rpm.without(own...)); diff != "" {
				t.Errorf("the .rpm is not what make install installs:\n%s", diff)
			}
			for _, path := range []string{"/usr/share/doc/" + name + "/copyright", "/usr/share/doc/" + name + "/changelog.Debian.gz"} {
				if deb[path] == "" {
					t.Errorf("the .deb has no %s", path)
				}
			}
			if rpm["/usr/share/licenses/"+name+"/LICENSE"] == "" {
				t.Error("the .rpm has no license")
			}
		})
	}
}

// What must be there, each at the place where others look for it.
func TestPlaces(t *testing.T) {
	want := []string{
		"/etc/auberge/auberge.conf",
		"/usr/bin/vmc", "/usr/bin/vsh",
		"/usr/lib/systemd/system/auberge-guests.service",
		"/usr/lib/systemd/system/auberge-helper.service", "/usr/lib/systemd/system/auberge-helper.socket",
		"/usr/lib/systemd/system/auberge-vm@.service",
		"/usr/lib/systemd/system/auberge.slice",
		"/usr/lib/systemd/system/vm-cicerone.service", "/usr/lib/systemd/system/vm-concierge.service",
		"/usr/lib/sysusers.d/auberge.conf", "/usr/lib/tmpfiles.d/auberge.conf",
		"/usr/libexec/auberge/auberge-helper", "/usr/libexec/auberge/auberge-vm",
		"/usr/libexec/auberge/vm_cicerone", "/usr/libexec/auberge/vm_concierge",
		"/usr/share/auberge/proto/cicerone_service.proto", "/usr/share/auberge/proto/concierge_service.proto",
		"/usr/share/bash-completion/completions/vmc", "/usr/share/fish/vendor_completions.d/vmc.fish",
		"/usr/share/dbus-1/interfaces/io.github.auberge_vm.Cicerone1.xml",
		"/usr/share/dbus-1/interfaces/io.github.auberge_vm.Concierge1.xml",
		"/usr/share/dbus-1/interfaces/org.chromium.VmCicerone.xml",
		"/usr/share/dbus-1/interfaces/org.chromium.VmConcierge.xml",
		"/usr/share/dbus-1/system-services/org.chromium.VmCicerone.service",
		"/usr/share/dbus-1/system-services/org.chromium.VmConcierge.service",
		"/usr/share/dbus-1/system.d/org.chromium.VmCicerone.conf",
		"/usr/share/dbus-1/system.d/org.chromium.VmConcierge.conf",
		"/usr/share/doc/auberge/examples/javascript/package-lock.json",
		"/usr/share/doc/auberge/examples/javascript/vms.js",
		"/usr/share/doc/auberge/examples/python/vms.py",
		"/usr/share/man/man1/vmc.1.gz", "/usr/share/man/man1/vsh.1.gz", "/usr/share/man/man5/auberge.conf.5.gz",
		"/usr/share/man/man8/auberge-helper.8.gz", "/usr/share/man/man8/vm_cicerone.8.gz", "/usr/share/man/man8/vm_concierge.8.gz",
		"/usr/share/polkit-1/actions/io.github.auberge-vm.policy", "/usr/share/polkit-1/rules.d/50-auberge.rules",
	}
	for kind, have := range map[string]files{"deb": inDeb(t, find(t, "auberge_*.deb")), "rpm": inRPM(t, find(t, "auberge-[0-9]*.rpm"))} {
		for _, path := range want {
			if have[path] == "" {
				t.Errorf("the .%s has no %s", kind, path)
			}
		}
		// A program that its users can read is one that they can trace when it
		// runs as them.
		if mode := have["/usr/libexec/auberge/auberge-helper"]; mode != "-rwx--x--x" {
			t.Errorf("the .%s has auberge-helper with the mode %s", kind, mode)
		}
		for path := range have {
			if strings.Contains(path, "node_modules") || strings.HasSuffix(path, "_pb2.py") {
				t.Errorf("the .%s has %s, which is no source", kind, path)
			}
		}
	}
	image := slices.Sorted(maps.Keys(inDeb(t, find(t, "auberge-image_*.deb")).without("/usr/share/doc/*/*", "/usr/share/lintian/*/*")))
	if diff := cmp.Diff([]string{"/usr/share/auberge/image/initramfs.cpio", "/usr/share/auberge/image/manifest.json",
		"/usr/share/auberge/image/rootfs.squashfs", "/usr/share/auberge/image/tools.squashfs", "/usr/share/auberge/image/vmlinux"}, image); diff != "" {
		t.Error(diff)
	}
	find(t, "vhost-device-vsock_*.deb")
}

// With another prefix nothing goes where a distribution's packages live, but
// for what is found nowhere else; and units name the programs where they are.
func TestPrefix(t *testing.T) {
	for path := range installed(t, "install", "PREFIX=/opt/auberge") {
		switch {
		case strings.HasPrefix(path, "/opt/auberge/"), strings.HasPrefix(path, "/etc/"), path == "/usr/share/polkit-1/actions/io.github.auberge-vm.policy":
		default:
			t.Errorf("%s is outside of the prefix", path)
		}
	}
	dir := t.TempDir()
	run(t, "make", "-C", source, "install", "DESTDIR="+dir, "PREFIX=/opt/auberge", "SYSCONFDIR=/opt/etc")
	unit, err := os.ReadFile(filepath.Join(dir, "opt/auberge/lib/systemd/system/vm-concierge.service"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "ExecStart=/opt/auberge/libexec/auberge/vm_concierge ") {
		t.Errorf("the unit starts another program:\n%s", unit)
	}
	// Each daemon with a configuration reads the file that was installed, and
	// the bus and polkit look into /etc whatever is said.
	for _, file := range []string{"opt/etc/auberge/auberge.conf", "etc/dbus-1/system.d/org.chromium.VmCicerone.conf", "etc/dbus-1/system.d/org.chromium.VmConcierge.conf", "etc/polkit-1/rules.d/50-auberge.rules"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"vm-concierge.service", "vm-cicerone.service", "auberge-helper.service"} {
		unit, err := os.ReadFile(filepath.Join(dir, "opt/auberge/lib/systemd/system", name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(unit), " --config=/opt/etc/auberge/auberge.conf") {
			t.Errorf("%s reads another configuration:\n%s", name, unit)
		}
	}
}
