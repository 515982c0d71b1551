package hosttest

import "testing"

// inhibits says who has logind wait before something, one on a line.
func (h *host) inhibits(t *testing.T, what string) string {
	t.Helper()
	return h.root().run(t, "systemd-inhibit --list --no-legend --no-pager | awk '$1 == \"Auberge\" && /delay/ && /"+what+"/ {print $1}'")
}

// hostWaits: logind has the machine wait for the VMs before it sleeps or shuts
// down.
func hostWaits(t *testing.T, h *host) {
	for _, what := range []string{"sleep", "shutdown"} {
		if got := h.inhibits(t, what); got != "Auberge" {
			t.Errorf("%q has the machine wait before it does %s, not Auberge alone", got, what)
		}
	}
}
