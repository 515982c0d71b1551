package hosttest

import (
	"strings"
	"testing"
)

// ciceroneRuns: the packaged vm_cicerone answers whom it may answer, and is
// started by the bus when it does not run.
func ciceroneRuns(t *testing.T, h *host) {
	const call = "busctl --system call org.chromium.VmCicerone /org/chromium/VmCicerone "
	root := h.root()
	root.run(t, "systemctl is-active vm-cicerone.service && systemctl stop vm-cicerone.service")
	if said := h.alice.run(t, call+"io.github.auberge_vm.Cicerone1 GetServiceInfo"); !strings.Contains(said, "required") {
		t.Errorf("GetServiceInfo: %s", said)
	}
	root.run(t, "systemctl is-active vm-cicerone.service")
	// An empty message is a request of every kind.
	h.alice.run(t, call+"org.chromium.VmCicerone ListRunningContainers ay 0")
	for _, member := range []string{"org.chromium.VmCicerone NotifyVmStarted ay 0", "org.chromium.VmCicerone GetContainerToken ay 0",
		"io.github.auberge_vm.Cicerone1 EnsureContainer uss 32 penguin x"} {
		if out, said, code := h.alice.try(t, call+member); code == 0 || !strings.Contains(said, "denied") {
			t.Errorf("alice calls %s: %s%s", member, out, said)
		}
	}
	if left := root.run(t, "stat -c '%a %U %G' /var/lib/auberge-cicerone | grep -v '^700 auberge-cicerone auberge-cicerone$' || true"); left != "" {
		t.Errorf("its directory: %s", left)
	}
}
