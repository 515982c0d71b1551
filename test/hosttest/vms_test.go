package hosttest

import (
	"encoding/json"
	"strings"
	"testing"
)

// startVM starts a VM and learns what the later steps look at.
func startVM(t *testing.T, h *host, v *vm, flags string) {
	t.Helper()
	v.owner.run(t, "vmc start "+v.name+" --timeout 300 "+flags)
	v.boot = v.bootID(t)
	units := strings.Fields(h.root().run(t, `systemctl list-units --plain --no-legend 'auberge-vm@*.service' | awk '{print $1}'`))
	for _, unit := range units {
		if id := strings.TrimSuffix(strings.TrimPrefix(unit, "auberge-vm@"), ".service"); id != h.first.id {
			v.id = id
		}
	}
	if v.id == "" {
		t.Fatalf("the VM %s runs in none of the units %q", v.name, units)
	}
	v.main = h.property(t, v, "MainPID")
	if out := h.root().run(t, "cat $(ls -d /proc/[0-9]*/ | while read p; do grep -q "+v.unit()+" $p/cgroup 2>/dev/null && echo ${p}cmdline; done) | tr '\\0' ' '"); !strings.Contains(out, "accel kvm") && !strings.Contains(out, "accel=kvm") {
		t.Errorf("the VM does not run on KVM: %s", out)
	}
}

func (v *vm) unit() string { return "auberge-vm@" + v.id + ".service" }

// bootID asks the guest; it is another one after each boot.
func (v *vm) bootID(t *testing.T) string {
	t.Helper()
	return v.owner.run(t, "vsh -T "+v.name+" -- cat /proc/sys/kernel/random/boot_id")
}

func (h *host) property(t *testing.T, v *vm, name string) string {
	t.Helper()
	return h.root().run(t, "systemctl show -P "+name+" "+v.unit())
}

func userVsock(t *testing.T, h *host) {
	startVM(t, h, &h.first, "--termina=false")
	h.alice.run(t, "vmc list | grep "+h.first.name)
}

// kernelVsock changes the configuration; what runs goes on as it was.
func kernelVsock(t *testing.T, h *host) {
	h.root().run(t, `sed -i 's/^#vsock = auto/vsock = kernel/' /etc/auberge/auberge.conf && grep -q '^vsock = kernel' /etc/auberge/auberge.conf &&
		systemctl restart vm-concierge.service`)
	// Its tools call the host as soon as it runs.
	startVM(t, h, &h.second, "")
	stillThere(t, h, &h.first)
}

// oneOfItsOwn looks at the units of both VMs.
func oneOfItsOwn(t *testing.T, h *host) {
	users := map[string]string{}
	for _, v := range []*vm{&h.first, &h.second} {
		uids := strings.Fields(h.root().run(t, "for p in $(cat /sys/fs/cgroup/$(systemctl show -P ControlGroup "+v.unit()+")/cgroup.procs); do ps -o uid= -p $p; done | sort -u"))
		if len(uids) != 1 {
			t.Errorf("the processes of %s have the users %q", v.name, uids)
			continue
		}
		if other := users[uids[0]]; other != "" || len(uids[0]) < 5 {
			t.Errorf("%s runs as user %s, and %q does too", v.name, uids[0], other)
		}
		users[uids[0]] = v.name
		if out := h.root().run(t, "nsenter -t "+v.main+" -m find /run -type s ! -path '/run/auberge-vm/"+v.id+"/*' ! -path '/run/systemd/journal/*' ! -path /run/systemd/notify"); out != "" {
			t.Errorf("%s can reach services of the host: %s", v.name, out)
		}
		for _, limit := range []string{"memory.max", "pids.max"} {
			if out := h.root().run(t, "cat /sys/fs/cgroup/$(systemctl show -P ControlGroup "+v.unit()+")/"+limit); out == "max" {
				t.Errorf("%s has no limit %s", v.name, limit)
			}
		}
		owner := h.root().run(t, "id -u "+strings.TrimSuffix(v.owner.Session, "-tty1"))
		line := h.root().run(t, "journalctl --quiet --output=json VM="+v.name+" OWNER="+owner+" | head -n 1")
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("the journal has nothing with VM=%s OWNER=%s: %v", v.name, owner, err)
		}
	}
}

// isolated: bob, who may have VMs, against alice's; and the other way round.
func isolated(t *testing.T, h *host) {
	for _, c := range []struct {
		v     *vm
		other who
	}{{&h.first, h.bob}, {&h.second, h.alice}} {
		name := c.v.name
		for _, command := range []string{"vmc list", "vmc state --json"} {
			if out := c.other.run(t, command); strings.Contains(out, name) {
				t.Errorf("%s tells another user of %s: %s", command, name, out)
			}
		}
		// The same words as for a VM that does not exist.
		for command, code := range map[string]int{"vmc stop NAME": 0, "vmc info NAME": notFound, "vmc logs NAME": notFound, "vmc suspend NAME": notFound} {
			said := c.other.fails(t, code, strings.ReplaceAll(command, "NAME", name))
			none := c.other.fails(t, code, strings.ReplaceAll(command, "NAME", "nobodys-box"))
			if strings.ReplaceAll(said, name, "") != strings.ReplaceAll(none, "nobodys-box", "") {
				t.Errorf("%s tells that there is such a VM: %q, and otherwise %q", command, said, none)
			}
		}
		if _, _, code := c.other.try(t, "vsh -T "+name+" -- true"); code == 0 {
			t.Errorf("another user gets a shell in %s", name)
		}
		// Whatever the machine tells anybody.
		out, _, _ := c.other.try(t, `{ cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\0' '\n'
			systemctl list-units --all --no-pager; systemctl show `+c.v.unit()+`; systemctl status --no-pager `+c.v.unit()+`
			journalctl --no-pager; find / -xdev; find /run /dev/shm; busctl list --no-pager
			busctl introspect --no-pager org.chromium.VmConcierge /org/chromium/VmConcierge; loginctl; cat /proc/net/unix; } 2>/dev/null`)
		for line := range strings.Lines(out) {
			if strings.Contains(line, name) {
				t.Errorf("another user learns of %s: %s", name, line)
			}
		}
	}
}

// portsRefuse dials a guest with kernel vsock on its ports, as other users:
// nothing may come back.
func portsRefuse(t *testing.T, h *host) {
	var info struct {
		VMInfo struct {
			CID json.Number `json:"cid"`
		} `json:"vm_info"`
	}
	if err := json.Unmarshal([]byte(h.bob.run(t, "vmc info --json "+h.second.name)), &info); err != nil {
		t.Fatal(err)
	}
	cid := info.VMInfo.CID.String()
	if cid == "" || cid == "0" {
		t.Fatal("vmc says no CID of the VM")
	}
	out := h.alice.run(t, "python3 - "+cid+" <<'END'\n"+dialAll+"END")
	t.Log(out)
	// Those of its agents are there, or nothing was tried.
	if !strings.Contains(out, "accepted") {
		t.Errorf("the guest was not reached: %s", out)
	}
	if strings.Contains(out, "DATA") {
		t.Errorf("a guest talks to another user's process: %s", out)
	}
}

// dialAll connects to many ports at a time, says what a gRPC client says, and
// prints whether the guest accepted and whether it said anything.
const dialAll = `
import select, socket, sys
cid = int(sys.argv[1])
ports = list(range(1, 1100)) + [2222] + list(range(5000, 5300)) + list(range(7700, 7800)) + list(range(8800, 9010)) + list(range(9990, 10010)) + [0xfffffffe]
accepted = 0
for i in range(0, len(ports), 100):
    waiting = {}
    for port in ports[i:i+100]:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.setblocking(False)
        try:
            s.connect((cid, port))
        except BlockingIOError:
            pass
        except OSError:
            s.close()
            continue
        waiting[s] = port
    said = set()
    while waiting:
        r, w, _ = select.select(list(waiting), [s for s in waiting if s not in said], [], 5)
        if not r and not w:
            break
        for s in w:
            if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                accepted += 1
                print("accepted", waiting[s])
            said.add(s)
            try:
                s.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            except OSError:
                pass
        for s in r:
            try:
                data = s.recv(100)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                print("DATA from", waiting[s], data)
            if s in waiting:
                del waiting[s]
            s.close()
    for s, port in waiting.items():
        print("silent", port)
        s.close()
print("tried", len(ports), "ports, accepted", accepted)
`
