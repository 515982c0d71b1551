package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	serviceName  = "org.chromium.VmConcierge"
	ciceroneName = "org.chromium.VmCicerone"
	polkitName   = "org.freedesktop.PolicyKit1"
)

func checkService(ctx context.Context, h *Host, _ info) Finding {
	if h.Bus == nil {
		return fail(fmt.Sprintf("the bus cannot be reached: %v", h.BusError),
			"start dbus-daemon or dbus-broker (systemctl start dbus), or name another bus with --bus")
	}
	owned, activatable, err := h.Bus.Known(ctx, serviceName)
	if err != nil {
		return fail(fmt.Sprintf("the bus does not answer: %v", err), "see journalctl -u dbus")
	}
	if !owned && !activatable {
		return fail("vm_concierge is not on the bus, and nothing starts it",
			"install the package auberge, or start it: systemctl start vm-concierge.service")
	}
	if _, err := h.Bus.Info(ctx); err != nil {
		return fail(fmt.Sprintf("vm_concierge does not answer: %v", err),
			"see journalctl -u vm-concierge.service, then systemctl restart vm-concierge.service (VMs run on)")
	}
	return ok("vm_concierge answers")
}

// checkContainers looks at the service for containers, without which VMs run
// all the same.
func checkContainers(ctx context.Context, h *Host, known info) Finding {
	if h.Bus == nil {
		return warn("not known: the bus cannot be reached", "")
	}
	owned, activatable, err := h.Bus.Known(ctx, ciceroneName)
	if err != nil {
		return warn(fmt.Sprintf("not known: %v", err), "")
	}
	if !owned && !activatable {
		return warn("vm_cicerone is not on the bus, and nothing starts it: there are no containers in VMs",
			"install the package auberge, or start it: systemctl start vm-cicerone.service")
	}
	if _, err := h.Bus.Cicerone(ctx); err != nil {
		return fail(fmt.Sprintf("vm_cicerone does not answer: %v", err),
			"see journalctl -u vm-cicerone.service, then systemctl restart vm-cicerone.service (containers run on)")
	}
	if known.word("vsock") == "kernel" {
		return ok("vm_cicerone answers; with kernel vsock there are no shells in containers, see vsock")
	}
	return ok("vm_cicerone answers")
}

func checkRights(ctx context.Context, h *Host, _ info) Finding {
	if h.Bus == nil {
		return warn("not known: the bus cannot be reached", "")
	}
	err := h.Bus.MayUse(ctx)
	switch {
	case err == nil && h.UID == 0:
		return ok("root may use and manage VMs")
	case err == nil:
		return ok(h.User + " may use VMs")
	case errors.Is(err, ErrDenied):
		remedy := "sit at the machine, or have an administrator add you to the group auberge: usermod -aG auberge " + h.User + ", and log in again"
		if members, ok := h.listed("/etc/group", "auberge", ":"); ok && len(members) > 3 &&
			slices.Contains(strings.Split(members[3], ","), h.User) && !slices.Contains(h.Groups, "auberge") {
			remedy = "you are in the group auberge since you logged in: log in again"
		}
		return fail(h.User+" may not use VMs: no active seat, and not in the group auberge", remedy)
	}
	return warn(fmt.Sprintf("not known: %v", err), "")
}

func checkPolkit(ctx context.Context, h *Host, known info) Finding {
	required := known.word("polkit") != "off"
	if !required {
		return ok("the service does not ask polkit: every user may use VMs, root alone manages other people's")
	}
	const actions = "/usr/share/polkit-1/actions/io.github.auberge-vm.policy"
	if !h.has(actions) {
		return fail(actions+" is not there: polkit does not know Auberge's actions and lets nobody in",
			"install the package auberge again, or policy/polkit with make install")
	}
	if h.Bus == nil {
		return warn("not known: the bus cannot be reached", "")
	}
	owned, activatable, err := h.Bus.Known(ctx, polkitName)
	switch {
	case err != nil:
		return warn(fmt.Sprintf("not known: %v", err), "")
	case !owned && !activatable:
		return fail("polkit is not on the bus: without it nobody may use VMs",
			"install polkitd; or set polkit = off in /etc/auberge/auberge.conf, which lets every user have VMs")
	}
	return ok("polkit is there and knows Auberge's actions")
}

func checkAccounts(_ context.Context, h *Host, known info) Finding {
	var missing []string
	if known.word("polkit") == "off" {
		return ok("VMs run as the users that the service was started with")
	}
	for file, names := range map[string][]string{"/etc/passwd": {"auberge"}, "/etc/group": {"auberge", "auberge-daemon", "kvm"}} {
		for _, name := range names {
			if _, ok := h.listed(file, name, ":"); !ok {
				missing = append(missing, name+" in "+file)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return warn("there is no "+strings.Join(missing, ", no "),
			"systemd-sysusers makes them (the group kvm comes with udev or QEMU); accounts that another name service knows are fine")
	}
	return ok("the service's user and groups are there")
}
