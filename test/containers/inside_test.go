package containers

import (
	"strings"
	"testing"
)

// What is in a container that runs: its system, its packages, its agent, and
// its applications on the desktop.
func TestInside(t *testing.T) {
	beside(t, &secondLane)
	s := preparedStack(t)
	s.system()
	s.walls()
	s.packageKit()
	s.agent()
	s.applications()
}

// walls tries as the container's root what would open the VM to it.
func (s *stack) walls() {
	s.t.Helper()
	for _, script := range []string{
		// The VM's disks.
		"test -n \"$(find /dev -type b)\"",
		"mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
		"mount /dev/vda /mnt",
		// The agents, which all containers have in common.
		"touch /opt/google/cros-containers/new",
		"unshare -m sh -c 'mount -o remount,rw,bind /opt/google/cros-containers; touch /opt/google/cros-containers/new'",
		"unshare -m sh -c 'umount /opt/google/cros-containers; mount -t squashfs /dev/vdb /opt/google/cros-containers'",
		// Settings of the kernel that have it run programs as the VM's root.
		"echo '|/tmp/x' > /proc/sys/kernel/core_pattern",
		"echo /tmp/x > /proc/sys/kernel/modprobe",
		"echo /tmp/x > /sys/kernel/uevent_helper",
		"echo b > /proc/sysrq-trigger",
		"mkdir /tmp/cg && mount -t cgroup -o rdma cgroup /tmp/cg && test -e /tmp/cg/release_agent",
		// Other processes of the VM, its files, its kernel.
		"test -e /proc/1/root/mnt/stateful/incus",
		"nsenter -t 1 -m test -e /mnt/stateful/incus",
		"unshare -m mount -t btrfs /dev/vdc /mnt",
	} {
		if got := s.root("if ( " + script + " ) > /dev/null 2>&1; then echo done; else echo refused; fi"); got != "refused" {
			s.t.Errorf("in the container, root has %q %s", script, got)
		}
	}
	// None of it has changed the VM.
	if got := s.vmRoot("cat /proc/sys/kernel/core_pattern; test ! -e /opt/google/cros-containers/new && echo clean"); strings.Contains(got, "/tmp/x") || !strings.HasSuffix(got, "clean") {
		s.t.Errorf("the VM says %q", got)
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
	} {
		if got := s.root(script + " || true"); got != want {
			s.t.Errorf("in the container, %q says %q, want %q", script, got, want)
		}
	}
	if got := s.shell("systemctl --user is-enabled cros-garcon.service; sudo -n id -u"); got != "enabled\n0" {
		s.t.Errorf("its user has %q", got)
	}
	if got := s.vmRoot("stat -c %u:%g /mnt/stateful/incus/storage-pools/default/containers/" + container + "/rootfs/home/alice"); got != "1000:1000" {
		s.t.Errorf("outside, the user's home is of %s", got)
	}
}
