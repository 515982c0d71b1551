package containers

import (
	"strings"
	"testing"
)

// What is in a container that runs: its system, its packages, its agent, and
// its applications on the desktop.
func TestInside(t *testing.T) {
	beside(t, 165)
	s := preparedStack(t)
	s.system()
	s.walls()
	d := s.desktop()
	s.packageKit(d)
	s.agent()
	s.applications(d)
}

// walls tries as the container's root what would open the VM to it, and what
// the VM's own root can do, or nothing was tried.
func (s *stack) walls() {
	s.t.Helper()
	const disk = "d=$(mktemp -u -p /root) && trap 'rm -f $d' EXIT && mknod $d b 254 0 && "
	for _, script := range []string{
		// The VM's disks.
		"test -n \"$(find /dev -type b)\"",
		disk + "head -c 1 $d",
		disk + "unshare -m mount -o ro $d /mnt",
		// Settings of the kernel, of which some have it run programs as the VM's
		// root. They stay as they are.
		"f=/proc/sys/kernel/core_pattern; v=$(cat $f); printf %s \"$v\" >$f",
		"f=/proc/sys/kernel/modprobe; v=$(cat $f); printf %s \"$v\" >$f",
		"echo h >/proc/sysrq-trigger",
		// Other processes of the VM, and its files.
		"kill -0 $(pgrep -x tremplin)",
		"test -e /mnt/stateful/incus",
	} {
		try := "if ( " + script + " ) >/dev/null 2>&1; then echo done; else echo refused; fi"
		if got := s.vmRoot(try); got != "done" {
			s.t.Errorf("in the VM, root has %q %s", got, script)
		}
		if got := s.root(try); got != "refused" {
			s.t.Errorf("in the container, root has %q %s", got, script)
		}
	}
	// The agents, which all containers have in common.
	for _, script := range []string{
		"touch /opt/google/cros-containers/new",
		"unshare -m sh -c 'mount -o remount,rw,bind /opt/google/cros-containers; touch /opt/google/cros-containers/new'",
	} {
		s.root("! ( " + script + " ) >/dev/null 2>&1")
	}
	if got := s.vmRoot("ls /opt/google/cros-containers"); strings.Contains(got, "new") || !strings.Contains(got, "bin") {
		s.t.Errorf("the agents' directory has %q", got)
	}
}

// system looks at the container as such.
func (s *stack) system() {
	s.t.Helper()
	for script, want := range map[string]string{
		// Nothing has failed to start.
		"systemctl is-system-running --wait": "running",
		// It knows nobody to download packages from.
		"find /etc/apt/sources.list.d -type f; cat /etc/apt/sources.list": "",
		"getent hosts $(hostname).incus | awk '{ print $2 }'":             container + ".incus",
		"stat -c %u:%g /home/alice":                                       "1000:1000",
		"findmnt -no OPTIONS /opt/google/cros-containers | cut -d, -f1":   "ro",
		"stat -c %a /dev/.container_token":                                "644",
		// ssh comes by way of vsh.
		"ss -Htln 'sport = :22'": "",
		// What has been started by nobody.
		"systemctl show -P InactiveExitTimestampMonotonic systemd-hostnamed": "0",
	} {
		if got := s.root(script + " || true"); got != want {
			s.t.Errorf("in the container, %q says %q, want %q", script, got, want)
		}
	}
	if got := s.shell("systemctl --user is-enabled cros-garcon.service; sudo -n id -u"); got != "enabled\n0" {
		s.t.Errorf("its user has %q", got)
	}
	if got := s.vmRoot("stat -c %u:%g " + containerRoot + "/home/alice"); got != "1000:1000" {
		s.t.Errorf("outside, the user's home is of %s", got)
	}
}
