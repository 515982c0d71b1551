package containers

import "testing"

// What is in a container that runs: its system, its packages, its agent, and
// its applications on the desktop.
func TestInside(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	s.system()
	s.packageKit()
	s.agent()
	s.applications()
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
