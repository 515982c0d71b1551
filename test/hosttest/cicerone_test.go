package hosttest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/test/testhost/wire"
)

const callCicerone = "busctl --system call org.chromium.VmCicerone /org/chromium/VmCicerone "

// ciceroneRuns: the packaged vm_cicerone answers whom it may answer, and is
// started by the bus when it does not run.
func ciceroneRuns(t *testing.T, h *host) {
	const call = callCicerone
	root := h.root()
	root.run(t, "systemctl is-active vm-cicerone.service && systemctl stop vm-cicerone.service")
	if said := h.alice.run(t, call+"io.github.auberge_vm.Cicerone1 GetServiceInfo"); !strings.Contains(said, "required") {
		t.Errorf("GetServiceInfo: %s", said)
	}
	root.run(t, "systemctl is-active vm-cicerone.service")
	// An empty message is a request of every kind.
	h.alice.run(t, call+"org.chromium.VmCicerone ListRunningContainers ay 0")
	// bob may not, says polkit: his terminal is not in front, and he is not in the
	// group yet.
	behind := who{h.Host, wire.Exec{Session: "bob-tty2"}}
	if out, said, code := behind.try(t, call+"org.chromium.VmCicerone ListRunningContainers ay 0"); code == 0 || !strings.Contains(said, "denied") {
		t.Errorf("bob, whom polkit refuses: code %d, %s%s", code, out, said)
	}
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

// ciceroneKnows: the packaged services know each other. What vm_concierge runs,
// vm_cicerone knows without being asked; and bob's VM, whose streams come by
// kernel vsock and are handed on, has told it that containers can be managed.
func ciceroneKnows(t *testing.T, h *host) {
	t.Helper()
	h.awaitKnown(t, &h.first, "tremplin ready: false")
	h.awaitKnown(t, &h.second, "tremplin ready: true")
	for _, other := range []struct {
		who who
		v   *vm
	}{{h.bob, &h.first}, {h.alice, &h.second}} {
		if info := h.known(t, other.who); strings.Contains(info, other.v.name) {
			t.Errorf("another user learns of %s: %s", other.v.name, info)
		}
	}
	if info := h.known(t, h.root()); !strings.Contains(info, h.first.name) || !strings.Contains(info, h.second.name) {
		t.Errorf("root does not learn of everybody's VMs: %s", info)
	}
	h.bob.run(t, "vmc list | grep "+h.second.name)
	for _, line := range []string{"cannot be looked after", "does not hear that tremplin is ready"} {
		if out, _, _ := h.root().try(t, "journalctl --quiet --boot -u vm-cicerone.service --output=cat | grep '"+line+"'"); out != "" {
			t.Errorf("vm_cicerone's journal: %s", out)
		}
	}
}

// known is what vm_cicerone tells somebody of VMs.
func (h *host) known(t *testing.T, w who) string {
	t.Helper()
	out := w.run(t, "busctl --json=short "+strings.TrimPrefix(callCicerone, "busctl ")+"org.chromium.VmCicerone GetDebugInformation ay 0")
	var reply struct {
		Data [][]int `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || len(reply.Data) != 1 {
		t.Fatalf("GetDebugInformation: %v in %s", err, out)
	}
	var b []byte
	for _, n := range reply.Data[0] {
		b = append(b, byte(n))
	}
	var info ciceronepb.GetDebugInformationResponse
	if err := proto.Unmarshal(b, &info); err != nil {
		t.Fatalf("GetDebugInformation: %v", err)
	}
	return info.GetDebugInformation()
}

// awaitKnown asks until vm_cicerone knows this of a VM: it hears of what happens
// aside from what waits for that.
func (h *host) awaitKnown(t *testing.T, v *vm, want string) {
	t.Helper()
	head, info := fmt.Sprintf("VM %s of owner ", v.name), ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		info = h.known(t, *v.owner)
		if slices.ContainsFunc(strings.Split(info, "\n"), func(line string) bool {
			return strings.HasPrefix(line, head) && strings.Contains(line, want)
		}) {
			return
		}
	}
	t.Errorf("vm_cicerone does not say %q of %s: %s", want, v.name, info)
}
