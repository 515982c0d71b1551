package doctor

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// backend is the program that serves vsock in user mode.
const backend = "vhost-device-vsock"

func checkVsock(_ context.Context, h *Host, known info) Finding {
	if known.word("vsock") == "kernel" {
		if !h.has("/dev/vhost-vsock") {
			return fail("the service uses the kernel's vsock, and there is no /dev/vhost-vsock",
				"modprobe vhost_vsock, and a line vhost_vsock in /etc/modules-load.d/auberge.conf; or vsock = user in /etc/auberge/auberge.conf")
		}
		return ok("kernel vsock, /dev/vhost-vsock is there")
	}
	program, found := h.program(cmp.Or(known.word("vsock_backend"), backend))
	if !found {
		return fail(backend+" is not installed, by which VMs and their host talk",
			"apt install "+backend+" (Debian 13 and later); for a release that lacks it, install the .deb of it that lies beside auberge's in its package set; "+
				"or vsock = kernel in /etc/auberge/auberge.conf")
	}
	return ok("user vsock by " + program)
}

func checkExposure(_ context.Context, h *Host, known info) Finding {
	switch known.word("vsock") {
	case "kernel":
		return warn("with kernel vsock any user of this machine can dial any guest; our guests' agents refuse everybody but the service, "+
			"and guests with other agents need an administrator's word for each VM",
			"vsock = user in /etc/auberge/auberge.conf: then nobody else can dial a guest at all")
	case "user":
		return ok("each VM has a socket that only the service can open")
	}
	if _, loaded := h.listed("/proc/modules", "vhost_vsock", " "); loaded {
		return ok("vhost_vsock is loaded; a service that uses it (vsock = kernel) has guests that any user can dial")
	}
	return ok("no guest can be dialled by the kernel's vsock")
}

func checkHelper(_ context.Context, h *Host, known info) Finding {
	socket := known.word("helper")
	switch {
	case known == nil:
		return warn("not known: the service does not answer", "")
	case socket == "":
		return ok("the service does without auberge-helper")
	case !h.has(socket):
		return fail("the socket of auberge-helper, "+socket+", is not there: no file of a user can be opened",
			"systemctl enable --now auberge-helper.socket")
	}
	return ok("auberge-helper can be started by " + socket)
}

func checkUnits(_ context.Context, h *Host, known info) Finding {
	if known == nil {
		return warn("not known: the service does not answer", "")
	}
	units, _ := known["vm_units"].(bool)
	if !units {
		return ok("VMs are no units of systemd; they need no unprivileged user namespaces")
	}
	found := false
	for _, dir := range []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"} {
		found = found || h.has(dir+"/auberge-vm@.service")
	}
	switch {
	case !found:
		return fail("the unit auberge-vm@.service is not there, as which VMs run", "install the package auberge again, then systemctl daemon-reload")
	case !h.has("/sys/fs/cgroup/cgroup.controllers"):
		return warn("this host has no cgroup of version 2: limits of VMs do not hold", "boot with systemd.unified_cgroup_hierarchy=1")
	}
	return ok("VMs run as auberge-vm@.service; they need no unprivileged user namespaces")
}

func checkNetwork(_ context.Context, h *Host, known info) Finding {
	if known.word("network") != "tap" {
		return ok("VMs need nothing of the host for their network, unless one is configured as tap")
	}
	var missing []string
	if !h.has("/dev/net/tun") {
		missing = append(missing, "/dev/net/tun (modprobe tun)")
	}
	if !h.hasModule("nf_tables") {
		missing = append(missing, "nf_tables (modprobe nf_tables)")
	}
	if len(missing) > 0 {
		return fail("for tap networks there is no "+strings.Join(missing, ", no "), "load the modules, and list them in /etc/modules-load.d/auberge.conf")
	}
	switch {
	case strings.TrimSpace(h.read("/proc/sys/net/ipv4/ip_forward")) == "1":
		return ok("the host forwards packets and has nf_tables")
	case h.keepsForwarding(known):
		return fail("the host does not forward packets, and auberge-helper leaves that so (ip-forward = keep): there are no tap networks",
			"net.ipv4.ip_forward = 1 in /etc/sysctl.d/, then sysctl --system; or ip-forward = set in /etc/auberge/auberge.conf")
	}
	return ok("the host has nf_tables, and forwards packets from the first tap network on: auberge-helper turns that on")
}

// keepsForwarding says whether the administrator has told the helper to leave
// the host's forwarding alone. The last line of a setting is the one that
// counts.
func (h *Host) keepsForwarding(known info) (keeps bool) {
	for line := range strings.Lines(h.read(cmp.Or(known.word("config"), "/etc/auberge/auberge.conf"))) {
		name, value, _ := strings.Cut(line, "=")
		if strings.TrimSpace(name) == "ip-forward" {
			keeps = strings.TrimSpace(value) == "keep"
		}
	}
	return keeps
}

// hasModule says whether the kernel has a module, or loads it when somebody
// needs it, which before the first VM nobody may have.
func (h *Host) hasModule(name string) bool {
	if _, loaded := h.listed("/proc/modules", name, " "); loaded || h.has("/sys/module/"+name) {
		return true
	}
	dir := "/lib/modules/" + strings.TrimSpace(h.read("/proc/sys/kernel/osrelease"))
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		for line := range strings.Lines(h.read(filepath.Join(dir, list))) {
			file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			if base, _, _ := strings.Cut(filepath.Base(file), "."); base == name {
				return true
			}
		}
	}
	return false
}

// rangeOfIDs is what a container with ids of its own takes.
const rangeOfIDs = 65536

func checkSubIDs(_ context.Context, h *Host, _ info) Finding {
	if h.UID == 0 {
		return ok("root needs none")
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if subIDs(h.read(file), h.User, h.UID) < rangeOfIDs {
			return warn(fmt.Sprintf("%s has less than %d ids for %s. VMs need none; sharing files with containers in a VM under their own ids will", file, rangeOfIDs, h.User),
				"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "+h.User+" (a range that is nobody else's)")
		}
	}
	return ok("there are ids for containers with ids of their own")
}

// subIDs adds up a user's lines of a file like /etc/subuid.
func subIDs(text, user string, uid int) (n uint64) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != user && f[0] != strconv.Itoa(uid) {
			continue
		}
		if count, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			n += count
		}
	}
	return n
}
