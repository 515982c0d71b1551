package hosttest

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// stillThere says that a VM is the same as before, and its owner reaches it.
func stillThere(t *testing.T, h *host, v *vm) {
	t.Helper()
	if main := h.property(t, v, "MainPID"); main != v.main {
		t.Errorf("the process of %s is %s, was %s", v.name, main, v.main)
	}
	if boot := v.bootID(t); boot != v.boot {
		t.Errorf("%s has booted again", v.name)
	}
}

func bothThere(t *testing.T, h *host) {
	t.Helper()
	stillThere(t, h, &h.first)
	stillThere(t, h, &h.second)
	ciceroneKnows(t, h)
}

func survivesRestart(t *testing.T, h *host) {
	h.root().run(t, "systemctl restart vm-concierge.service vm-cicerone.service auberge-helper.service")
	bothThere(t, h)
}

func survivesKill(t *testing.T, h *host) {
	h.root().run(t, `old=$(systemctl show -P MainPID vm-concierge.service) second=$(systemctl show -P MainPID vm-cicerone.service)
		anew() {
			new=$(systemctl show -P MainPID $1) && [ "$new" != 0 ] && [ "$new" != "$2" ] && systemctl is-active --quiet $1
		}
		systemctl kill --signal=KILL vm-concierge.service vm-cicerone.service auberge-helper.service
		until anew vm-concierge.service $old && anew vm-cicerone.service $second; do sleep 0.2; done`)
	bothThere(t, h)
}

func survivesUpgrade(t *testing.T, h *host) {
	const pids = "systemctl show -P MainPID vm-concierge.service; systemctl show -P MainPID vm-cicerone.service"
	old := strings.Fields(h.root().run(t, pids))
	h.root().run(t, "dpkg --force-unsafe-io --install "+packagesAt+"/auberge_*.deb </dev/null")
	for i, now := range strings.Fields(h.root().run(t, pids)) {
		if now == old[i] || now == "0" {
			t.Errorf("the upgrade left the old service running, or none: %s, was %s", now, old[i])
		}
	}
	h.root().run(t, "systemctl is-active vm-concierge.service vm-cicerone.service")
	bothThere(t, h)
}

// powerOff shuts the machine down with both VMs running, and starts it again.
func powerOff(t *testing.T, h *host) {
	if !h.owned {
		t.Fatal("whoever keeps this test host has to power it off")
	}
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	if err := h.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.CheckDisk(ctx); err != nil {
		t.Error(err)
	}
	if err := h.Start(ctx); err != nil {
		t.Fatal(err)
	}
	journal := h.root().run(t, "journalctl --quiet --boot=-1 --output=cat --no-pager | grep -e 'VM ' -e vm-concierge -e auberge")
	lines := strings.Split(journal, "\n")
	stopped := position(lines, "Stopped vm-concierge.service")
	for _, v := range []*vm{&h.first, &h.second} {
		// One that was ended by harder means has another reason.
		end := position(lines, "VM ended", v.name, "reason=guest")
		if end < 0 || stopped < end {
			t.Errorf("%s did not end in order before vm_concierge (line %d, vm_concierge %d):\n%s", v.name, end, stopped, journal)
		}
	}
	if _, err := h.Login(ctx, "alice", "tty1"); err != nil {
		t.Fatal(err)
	}
	if out := h.alice.run(t, "vmc list"); strings.Contains(out, h.first.name) {
		t.Errorf("after the machine was off, alice has %s", out)
	}
	if left := h.root().run(t, "systemctl list-units --all --plain --no-legend 'auberge-vm@*'"); left != "" {
		t.Errorf("after the machine was off, VMs run: %s", left)
	}
}

// position is the last line with all of some words, or -1: services stop at
// each restart too.
func position(lines []string, words ...string) int {
next:
	for i, line := range slices.Backward(lines) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		return i
	}
	return -1
}
