package hosttest

import (
	"slices"
	"strings"
	"testing"
)

// hostSleeps has the machine sleep with a VM that runs and one that its user
// has suspended. The first goes on afterwards, with the right time; the other
// stays as it is. logind, its inhibitors and its signals are real; in place of
// the sleep itself, from which an emulated machine does not come back, there is
// a look at the VMs.
func hostSleeps(t *testing.T, h *host) {
	h.root().run(t, `mkdir -p /run/systemd/system/systemd-suspend.service.d && cat >/run/systemd/system/systemd-suspend.service.d/look.conf <<'END' && systemctl daemon-reload
[Service]
ExecStart=
ExecStart=/bin/sh -c 'vmc list --all-users >/run/asleep'
END`)
	defer h.root().run(t, "rm -r /run/systemd/system/systemd-suspend.service.d /run/asleep && systemctl daemon-reload")
	h.second.owner.run(t, "vmc suspend "+h.second.name)
	// A clock that was not set would be one of the distant past.
	h.first.owner.run(t, "vsh -T --user root "+h.first.name+" -- date -s @1000000000")
	since := h.root().run(t, "date +%s")
	h.root().run(t, "systemctl suspend")
	journal := "journalctl --quiet --boot --unit vm-concierge --output=cat --no-pager --since=@" + since
	h.root().run(t, "for i in $(seq 480); do "+journal+" | grep -q 'host is awake' && exit 0; sleep 0.5; done; "+journal+"; exit 1")
	asleep := h.root().run(t, "cat /run/asleep")
	for _, v := range []*vm{&h.first, &h.second} {
		if got := v.status(asleep); got != "suspended" {
			t.Errorf("while the machine slept, %s was %q:\n%s", v.name, got, asleep)
		}
	}
	// The machine is kept from sleeping again until its VMs are told.
	h.root().run(t, `for i in $(seq 240); do [ "$(systemd-inhibit --list --no-legend | awk '$1 == "Auberge"' | wc -l)" -ge 2 ] && exit 0; sleep 0.5; done; exit 1`)
	if got := h.first.owner.run(t, "for i in $(seq 240); do vmc list | grep "+h.first.name+" | grep -q running && break; sleep 0.5; done; vsh -T "+h.first.name+" -- date +%Y"); got < "2020" {
		t.Errorf("after the machine has slept, the guest's year is %s", got)
	}
	stillThere(t, h, &h.first)
	if got := h.second.status(h.second.owner.run(t, "vmc list")); got != "suspended" {
		t.Errorf("after the machine has slept, the VM that its user had suspended is %q", got)
	}
	h.second.owner.run(t, "vmc resume "+h.second.name)
	stillThere(t, h, &h.second)
}

// status is a VM's in a list, in one word.
func (v *vm) status(list string) string {
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		if !slices.Contains(words, v.name) {
			continue
		}
		for _, w := range words {
			switch w {
			case "running", "suspended", "starting", "stopping":
				return w
			}
		}
	}
	return ""
}
