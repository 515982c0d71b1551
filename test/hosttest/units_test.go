package hosttest

import (
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// unitsOnly: the service's user, should somebody have taken it over, has systemd
// manage units of VMs and nothing else.
func unitsOnly(t *testing.T, h *host) {
	service := who{h.Host, wire.Exec{User: "auberge"}}
	const systemctl = "systemctl --no-ask-password "
	for _, refused := range []string{
		"stop auberge-helper.socket", "start systemd-journal-flush.service", "restart vm-concierge.service",
		"set-property --runtime vm-concierge.service MemoryMax=1G", "kill systemd-logind.service",
		"start auberge-vm@UPPER.service", "restart " + h.first.unit(), "stop auberge.slice",
		"daemon-reload", "poweroff", "suspend", "mask --runtime polkit.service",
	} {
		if out, said, code := service.try(t, systemctl+refused); code == 0 {
			t.Errorf("the service's user may %s: %s%s", refused, out, said)
		}
	}
	if state := h.root().run(t, "systemctl is-active auberge-helper.socket vm-concierge.service "+h.first.unit()+" | sort -u"); state != "active" {
		t.Errorf("after that: %s", strings.Fields(state))
	}
	service.run(t, systemctl+"set-property --runtime "+h.first.unit()+" TasksMax=500")
}
