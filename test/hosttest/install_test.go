package hosttest

import (
	"slices"
	"strings"
	"testing"
)

const allFiles = `find / -xdev ! -path '/var/log/journal/*' ! -path '/tmp/*' ! -path '/var/tmp/*' ! -path '/home/*' | sort`

func install(t *testing.T, h *host) {
	root := h.root()
	h.before = root.run(t, allFiles)
	// Whatever they depend on has to be there already: there is no network.
	root.run(t, "dpkg --force-unsafe-io --install "+packagesAt+"/*.deb </dev/null")
	root.run(t, "systemctl is-active vm-concierge.service vm-cicerone.service auberge-helper.socket auberge-guests.service")
	if failed := root.run(t, "systemctl --failed --plain --no-legend"); failed != "" {
		t.Errorf("units that failed: %s", failed)
	}
	for unit, want := range map[string]string{"vm-concierge.service": "auberge", "vm-cicerone.service": "auberge-cicerone"} {
		if user := root.run(t, "ps -ww -o user:32= -p $(systemctl show -P MainPID "+unit+")"); strings.TrimSpace(user) != want {
			t.Errorf("%s runs as %s", unit, user)
		}
		caps := root.run(t, "grep Cap /proc/$(systemctl show -P MainPID "+unit+")/status | awk '{print $2}' | sort -u")
		if caps != "0000000000000000" {
			t.Errorf("%s has capabilities: %s", unit, caps)
		}
	}
}

// confined holds the numbers of systemd-analyze security; a threshold is ten
// times the exposure.
func confined(t *testing.T, h *host) {
	for unit, threshold := range map[string]string{
		"vm-concierge.service":   "20",
		"vm-cicerone.service":    "15",
		"auberge-helper.service": "30",
		"auberge-guests.service": "20",
		"auberge-vm@x.service":   "20",
	} {
		t.Log(h.root().run(t, "set -o pipefail; systemd-analyze security --no-pager --threshold="+threshold+" "+unit+" | tail -n 1"))
	}
}

// purge removes the packages and compares the disk with what it was.
func purge(t *testing.T, h *host) {
	root := h.root()
	root.run(t, "vmc create kept-disk --size 64M")
	said := root.run(t, "dpkg --purge auberge auberge-image vhost-device-vsock </dev/null 2>&1")
	for _, want := range []string{"/var/lib/auberge/disks", "the users auberge and auberge-cicerone"} {
		if !strings.Contains(said, want) {
			t.Errorf("purge says nothing of %s:\n%s", want, said)
		}
	}
	before := strings.Fields(h.before)
	for _, file := range strings.Fields(root.run(t, allFiles)) {
		if _, had := slices.BinarySearch(before, file); !had && !mayStay(file) {
			t.Errorf("purge left %s", file)
		}
	}
	if run := root.run(t, "ls -d /run/auberge* 2>/dev/null || true"); run != "" {
		t.Errorf("purge left %s", run)
	}
	if left := root.run(t, "systemctl list-units --all --type=service,socket,slice --plain --no-legend '*auberge*' '*concierge*' '*cicerone*'"); left != "" {
		t.Errorf("units are left: %s", left)
	}
	root.run(t, "getent passwd auberge auberge-cicerone")
}

// mayStay says what may be there after a purge: the disk that somebody made,
// and what the machine itself wrote meanwhile.
func mayStay(file string) bool {
	if file == "/var/lib/auberge" || strings.HasPrefix(file, "/var/lib/auberge/disks") {
		return true
	}
	if strings.Contains(file, "auberge") || strings.Contains(file, "concierge") || strings.Contains(file, "cicerone") {
		return false
	}
	for _, own := range []string{
		"/etc/.pwd.lock", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-",
		"/var/lib/dpkg/", "/var/cache/", "/var/log/", "/var/lib/systemd/", "/var/lib/private", "/var/lib/polkit-1/",
		"/root/", "/mnt/", "/run", "/usr/share/applications/",
	} {
		if strings.HasPrefix(file, own) {
			return true
		}
	}
	return false
}
