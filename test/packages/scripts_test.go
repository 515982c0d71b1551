package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A debian is this machine's Debian with everything that changes kept apart:
// an overlay in a mount name space of its own, into which commands chroot. The
// machine's systemd does not run there, nor does a bus.
type debian struct {
	t *testing.T
	// dir is what changes, on the machine's side.
	dir string
}

// newDebian prepares the place that changes go to.
func newDebian(t *testing.T) *debian {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("installs packages into an overlay of this system and needs root for that")
	}
	d := &debian{t: t, dir: t.TempDir()}
	for _, sub := range []string{"upper", "work", "root", "packages"} {
		if err := os.Mkdir(filepath.Join(d.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// add puts a package where the commands find it, in /packages.
func (d *debian) add(deb, name string) {
	d.t.Helper()
	run(d.t, "cp", deb, filepath.Join(d.dir, "packages", name))
}

// try runs a script there as root. /dev/null is all that it needs of /dev.
func (d *debian) try(script string) (string, error) {
	d.t.Helper()
	const enter = `set -e
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mkdir -p "$1/root/packages" "$1/root/run"
mount --bind "$1/packages" "$1/root/packages"
mount -t tmpfs none "$1/root/run"
[ -e "$1/root/dev/null" ] || touch "$1/root/dev/null"
mount --bind /dev/null "$1/root/dev/null"
exec chroot "$1/root" sh -ec "$2"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "enter", d.dir, script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return try(d.t, cmd)
}

// run runs a script that must succeed.
func (d *debian) run(script string) string {
	d.t.Helper()
	out, err := d.try(script)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// newer makes the package of a later version from one.
func newer(t *testing.T, deb, to string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "unpacked")
	run(t, "dpkg-deb", "--raw-extract", deb, dir)
	control := filepath.Join(dir, "DEBIAN/control")
	run(t, "sed", "-i", "s/^Version: .*/Version: 99.0-1/", control)
	run(t, "dpkg-deb", "--build", "-Znone", "--root-owner-group", dir, to)
}

// Where no systemd runs, as in a chroot or an image that is being built, the
// package comes, is upgraded, goes and is purged without a complaint; and what
// stays is what it says.
func TestComesAndGoes(t *testing.T) {
	d := newDebian(t)
	d.add(find(t, "auberge_*.deb"), "auberge.deb")
	next := filepath.Join(t.TempDir(), "next.deb")
	newer(t, find(t, "auberge_*.deb"), next)
	d.add(next, "next.deb")

	// What it needs is not the question here; this machine may lack some. Other
	// packages' triggers (manual pages) only take time.
	d.run("dpkg --no-triggers --install --force-depends /packages/auberge.deb")
	for what, script := range map[string]string{
		"the user":               "test $(id -gn auberge) = auberge-daemon; getent passwd auberge | grep -q nologin",
		"vm_cicerone's user":     "test $(id -gn auberge-cicerone) = auberge-cicerone; test \"$(id -Gn auberge-cicerone)\" = auberge-cicerone; getent passwd auberge-cicerone | grep -q nologin",
		"the users' group":       "getent group auberge; ! id -nG auberge | tr ' ' '\\n' | grep -qx auberge",
		"the state directory":    "test \"$(stat -c '%a %U %G' /var/lib/auberge)\" = '700 auberge auberge-daemon'",
		"units are enabled":      "for u in $(cd /usr/lib/systemd/system && grep -l '^WantedBy=' auberge*.s* vm-concierge.service vm-cicerone.service); do systemctl --root=/ is-enabled $u; done",
		"the daemons can be run": "/usr/libexec/auberge/vm_concierge --help >/dev/null; /usr/libexec/auberge/vm_cicerone --help >/dev/null",
		"vmc's page":             "test -f /usr/share/man/man1/vmc.1.gz",
	} {
		if out, err := d.try(script); err != nil {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}

	// What an administrator and the users made stays at an upgrade.
	d.run(`echo "# ours" >>/etc/auberge/auberge.conf
		install -d -o auberge -g auberge-daemon /var/lib/auberge/disks/1000 /var/lib/auberge/settings/1000
		echo precious >/var/lib/auberge/disks/1000/box.img
		install -d -o auberge-cicerone /var/lib/auberge-cicerone
		echo {} >/var/lib/auberge/settings/1000/box.json
		systemctl --root=/ disable vm-concierge.service`)
	d.run("dpkg --no-triggers --install --force-depends /packages/next.deb")
	d.run(`grep -q ours /etc/auberge/auberge.conf; grep -q precious /var/lib/auberge/disks/1000/box.img
		test "$(dpkg-query -W -f '${Version} ${Status}' auberge)" = "99.0-1 install ok installed"
		! systemctl --root=/ is-enabled vm-concierge.service`)

	d.run("dpkg --no-triggers --remove auberge")
	d.run(`! test -e /usr/bin/vmc; ! test -e /usr/libexec/auberge
		grep -q ours /etc/auberge/auberge.conf; grep -q precious /var/lib/auberge/disks/1000/box.img`)

	out := d.run("dpkg --no-triggers --purge auberge")
	if !strings.Contains(out, "/var/lib/auberge/disks") || !strings.Contains(out, "the users auberge and auberge-cicerone, and the groups auberge, auberge-cicerone and auberge-daemon stay") {
		t.Errorf("purge does not say what it leaves: %s", out)
	}
	d.run(`! test -e /etc/auberge; ! test -e /var/lib/auberge-cicerone; grep -q precious /var/lib/auberge/disks/1000/box.img; getent passwd auberge auberge-cicerone
		test "$(ls /var/lib/auberge)" = disks
		test -z "$(find /etc/systemd /var/lib/systemd -name 'auberge*' -o -name 'vm-concierge*' -o -name 'vm-cicerone*')"`)

	// It comes back to what it left, and leaves nothing when that is wanted.
	d.run("dpkg --no-triggers --install --force-depends /packages/auberge.deb; grep -q precious /var/lib/auberge/disks/1000/box.img")
	d.run("AUBERGE_PURGE_DISKS=1 dpkg --no-triggers --purge auberge; ! test -e /var/lib/auberge")
	// Nor does it when nobody had a disk.
	d.run("dpkg --no-triggers --install --force-depends /packages/auberge.deb; mkdir /var/lib/auberge/disks; dpkg --no-triggers --purge auberge; ! test -e /var/lib/auberge")
}

// A state directory that an administrator moved by a link is not followed into
// what else lies there.
func TestPurgeStaysInside(t *testing.T) {
	d := newDebian(t)
	d.add(find(t, "auberge_*.deb"), "auberge.deb")
	d.run(`mkdir -p /srv/elsewhere/logs; echo mine >/srv/mine
		dpkg --no-triggers --install --force-depends /packages/auberge.deb
		ln -s /srv/mine /var/lib/auberge/link
		dpkg --no-triggers --purge auberge
		grep -q mine /srv/mine`)
}

// A guest image that comes, or comes anew, has the service that runs start
// again, or new VMs would get the one before until it next does.
func TestImageComes(t *testing.T) {
	d := newDebian(t)
	d.add(find(t, "auberge-image_*.deb"), "image.deb")
	// Nothing of systemd is there.
	d.run("dpkg --no-triggers --install /packages/image.deb")
	// What the scripts would have a systemd do that runs.
	d.run(`printf '#!/bin/sh\necho "$@" >>/calls\n' >/usr/bin/deb-systemd-invoke
		mkdir -p /run/systemd/system
		dpkg --no-triggers --install /packages/image.deb
		test "$(cat /calls)" = "try-restart vm-concierge.service"
		dpkg --no-triggers --purge auberge-image
		! test -e /usr/share/auberge/image`)
}
