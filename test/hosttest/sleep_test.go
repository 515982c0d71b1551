//go:build hostsleep

package hosttest

import (
	"context"
	"strings"
	"testing"
)

// TestHostSleeps is not among the steps of TestHost: an emulated machine may
// not survive that it is woken, and then the steps behind would fail for it.
//
//	go test -tags hostsleep ./test/hosttest -run TestHostSleeps
func TestHostSleeps(t *testing.T) {
	h := start(t)
	install(t, h)
	logins(t, h)
	userVsock(t, h)
	kernelVsock(t, h)
	sleepsAndWakes(t, h)
}

// status is a VM's in one word.
func (v *vm) status(t *testing.T) string {
	t.Helper()
	return v.owner.run(t, "vmc list | awk '$1 == \""+v.name+"\" {for (i = 2; i <= NF; i++) if ($i ~ /^(running|suspended|stopping|starting)$/) print $i}'")
}

// sleepsAndWakes has the machine sleep with a VM that runs and one that its
// user has suspended. The first goes on afterwards, with the right time, the
// other stays as it is.
func sleepsAndWakes(t *testing.T, h *host) {
	h.second.owner.run(t, "vmc suspend "+h.second.name)
	// A clock that was not set would be one of the distant past.
	h.first.owner.run(t, "vsh --user root "+h.first.name+" -- date -s @1000000000")
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	if err := h.Sleep(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.Wake(ctx); err != nil {
		t.Fatal(err)
	}
	h.root().run(t, `for i in $(seq 240); do
		journalctl --quiet --boot --unit vm-concierge --output=cat --no-pager | grep -q 'host is awake' && exit 0; sleep 0.5; done; exit 1`)
	h.root().run(t, "for i in $(seq 240); do [ \"$(systemd-inhibit --list --no-legend | awk '$1 == \"Auberge\"' | wc -l)\" -ge 2 ] && exit 0; sleep 0.5; done; exit 1")
	if got := h.first.owner.run(t, "for i in $(seq 240); do vmc list | grep "+h.first.name+" | grep -q running && break; sleep 0.5; done; vsh "+h.first.name+" -- date +%Y"); got < "2020" {
		t.Errorf("after the machine has slept, the guest's year is %s", got)
	}
	stillThere(t, h, &h.first)
	if got := h.second.status(t); got != "suspended" {
		t.Errorf("after the machine has slept, the VM that its user had suspended is %q", got)
	}
	h.second.owner.run(t, "vmc resume "+h.second.name)
	stillThere(t, h, &h.second)
	journal := h.root().run(t, "journalctl --quiet --boot --unit vm-concierge --output=cat --no-pager")
	if !strings.Contains(journal, "host is about to sleep") {
		t.Errorf("vm_concierge was not told:\n%s", journal)
	}
}
