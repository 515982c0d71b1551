package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeBus is a bus with what a test says.
type fakeBus struct {
	names   map[string]bool // whether they are there; others can't be started
	info    map[string]any
	infoErr error
	ctErr   error
	may     error
	allowed bool
	reason  string
}

func (b *fakeBus) Known(_ context.Context, name string) (bool, bool, error) {
	return b.names[name], b.names[name], nil
}

func (b *fakeBus) Info(context.Context) (map[string]any, error) { return b.info, b.infoErr }
func (b *fakeBus) Cicerone(context.Context) (map[string]any, error) {
	return map[string]any{}, b.ctErr
}
func (b *fakeBus) MayUse(context.Context) error { return b.may }
func (b *fakeBus) LaunchAllowed(context.Context) (bool, string, error) {
	return b.allowed, b.reason, nil
}

// A patient is a machine on which everything is as it should be, until a test
// takes something away.
type patient struct {
	t     *testing.T
	bus   *fakeBus
	host  *Host
	qemu  string
	files map[string]string
}

func healthy(t *testing.T) *patient {
	p := &patient{t: t, qemu: "QEMU emulator version 10.0.2 (Debian)\n"}
	p.bus = &fakeBus{names: map[string]bool{serviceName: true, ciceroneName: true, polkitName: true}, allowed: true, info: map[string]any{
		"vsock": "user", "network": "tap", "polkit": "required", "vm_units": true, "helper": "/run/auberge-helper/socket",
		"accel": "kvm", "state_dir": "/var/lib/auberge", "runtime_dir": "/run/auberge",
		"state_free": uint64(50 << 30), "runtime_free": uint64(1 << 30),
	}}
	p.files = map[string]string{
		"/usr/share/polkit-1/actions/io.github.auberge-vm.policy": "",
		"/etc/passwd":                 "root:x:0:0::/root:/bin/sh\nauberge:x:900:900::/:/bin/false\n",
		"/etc/group":                  "kvm:x:100:\nauberge:x:901:alice\nauberge-daemon:x:900:\n",
		"/proc/cpuinfo":               "flags : fpu svm sse\n",
		"/proc/modules":               "nf_tables 1 0 - Live\nvhost 2 0 - Live\n",
		"/dev/kvm":                    "",
		"/usr/bin/qemu-system-x86_64": "#!",
		"/usr/libexec/" + backend:     "#!",
		"/run/auberge-helper/socket":  "",
		"/usr/lib/systemd/system/auberge-vm@.service": "",
		"/sys/fs/cgroup/cgroup.controllers":           "",
		"/dev/net/tun":                                "",
		"/proc/sys/net/ipv4/ip_forward":               "1\n",
		"/etc/subuid":                                 "alice:100000:65536\n",
		"/etc/subgid":                                 "1000:100000:65536\n",
		"/usr/share/auberge/image/manifest.json":      `{"format":1,"files":[{"name":"vmlinux","size":6}]}`,
		"/usr/share/auberge/image/vmlinux":            "kernel",
	}
	p.host = &Host{Root: t.TempDir(), UID: 1000, User: "alice", Groups: []string{"auberge"}, Bus: p.bus,
		Run:  func(context.Context, string, ...string) (string, error) { return p.qemu, nil },
		Free: func(string) (uint64, error) { return 1 << 40, nil }}
	return p
}

// examine makes the files and returns what was found, by name.
func (p *patient) examine() map[string]Finding {
	p.t.Helper()
	for name, text := range p.files {
		path := filepath.Join(p.host.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if name == "/dev/kvm" {
			mode = 0o660
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			p.t.Fatal(err)
		}
	}
	all := map[string]Finding{}
	for _, f := range Examine(p.t.Context(), p.host) {
		if _, twice := all[f.Name]; twice || f.Detail == "" {
			p.t.Errorf("%+v", f)
		}
		all[f.Name] = f
	}
	return all
}

func TestHealthy(t *testing.T) {
	for _, f := range healthy(t).examine() {
		if f.Outcome != OK {
			t.Errorf("%+v", f)
		}
	}
}

// Before the first VM nobody may have had the host forward packets, which the
// helper does when it is needed.
func TestNotForwardingYet(t *testing.T) {
	for _, conf := range []string{"", "#ip-forward = keep\n", "[auberge-helper]\nip-forward = keep\nip-forward=set\n"} {
		p := healthy(t)
		p.files["/proc/sys/net/ipv4/ip_forward"] = "0\n"
		p.files["/etc/auberge/auberge.conf"] = conf
		if f := p.examine()["network"]; f.Outcome != OK || !strings.Contains(f.Detail, "turns that on") {
			t.Errorf("%q: %+v", conf, f)
		}
	}
}

// Before the first VM nobody may have needed nf_tables: that the kernel has it,
// or can load it, is enough.
func TestNotLoadedYet(t *testing.T) {
	for list, line := range map[string]string{
		"modules.dep":     "kernel/net/netfilter/nf_tables.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz\n",
		"modules.builtin": "kernel/net/netfilter/nf_tables.ko\n",
	} {
		p := healthy(t)
		p.files["/proc/modules"] = "vhost 2 0 - Live\n"
		p.files["/proc/sys/kernel/osrelease"] = "6.12.0\n"
		p.files["/lib/modules/6.12.0/"+list] = "kernel/net/netfilter/nf_tables_x.ko: kernel/net/netfilter/nf_tables.ko\n"
		if f := p.examine()["network"]; f.Outcome != Fail {
			t.Errorf("%s without it: %+v", list, f)
		}
		p.files["/lib/modules/6.12.0/"+list] += line
		if f := p.examine()["network"]; f.Outcome != OK {
			t.Errorf("%s: %+v", list, f)
		}
	}
}

// Each ill is found, by its own check alone, and the remedy says what to do.
func TestIlls(t *testing.T) {
	gone := func(files ...string) func(*patient) {
		return func(p *patient) {
			for _, f := range files {
				if _, ok := p.files[f]; !ok {
					p.t.Fatalf("there is no %s", f)
				}
				delete(p.files, f)
			}
		}
	}
	says := func(file, text string) func(*patient) { return func(p *patient) { p.files[file] = text } }
	info := func(key string, value any) func(*patient) { return func(p *patient) { p.bus.info[key] = value } }
	for name, test := range map[string]struct {
		ill            func(*patient)
		check          string
		outcome        Outcome
		detail, remedy string
	}{
		"nobody starts the service": {func(p *patient) { p.bus.names[serviceName] = false }, "service", Fail, "not on the bus", "package auberge"},
		"nobody starts containers":  {func(p *patient) { p.bus.names[ciceroneName] = false }, "containers", Warn, "vm_cicerone is not on the bus", "vm-cicerone.service"},
		"vm_cicerone that is stuck": {func(p *patient) { p.bus.ctErr = errors.New("late") }, "containers", Fail, "does not answer: late", "containers run on"},
		"no seat and no group": {func(p *patient) {
			p.bus.may, p.host.Groups = ErrDenied, nil
			p.files["/etc/group"] = "kvm:x:1:\nauberge:x:2:\nauberge-daemon:x:3:\n"
		},
			"rights", Fail, "alice may not use VMs", "usermod -aG auberge alice"},
		"a group since the login":        {func(p *patient) { p.bus.may, p.host.Groups = ErrDenied, nil }, "rights", Fail, "alice may not", "log in again"},
		"rights that are not known":      {func(p *patient) { p.bus.may = errors.New("late") }, "rights", Warn, "late", ""},
		"no actions of polkit":           {gone("/usr/share/polkit-1/actions/io.github.auberge-vm.policy"), "polkit", Fail, "does not know Auberge's actions", "again"},
		"no polkit":                      {func(p *patient) { p.bus.names[polkitName] = false }, "polkit", Fail, "nobody may use VMs", "polkitd"},
		"no account of the service":      {says("/etc/passwd", "root:x:0:0::/:/bin/sh\n"), "accounts", Warn, "auberge in /etc/passwd", "systemd-sysusers"},
		"no group kvm":                   {says("/etc/group", "auberge:x:1:\nauberge-daemon:x:2:\n"), "accounts", Warn, "kvm in /etc/group", "systemd-sysusers"},
		"no kvm, a processor with it":    {gone("/dev/kvm"), "kvm", Warn, "/dev/kvm", "modprobe kvm_amd"},
		"no kvm, a processor without":    {func(p *patient) { gone("/dev/kvm")(p); says("/proc/cpuinfo", "flags : fpu")(p) }, "kvm", Warn, "no virtualization", "firmware"},
		"kvm that runs no guests":        {func(p *patient) { info("accel", "tcg")(p); info("accel_reason", "it hung")(p) }, "kvm", Warn, "it hung", "probes again"},
		"a flawed processor":             {func(p *patient) { p.bus.allowed, p.bus.reason = false, "l1tf: Vulnerable" }, "processor", Fail, "l1tf", "microcode"},
		"no QEMU":                        {gone("/usr/bin/qemu-system-x86_64"), "qemu", Fail, "not installed", "apt install qemu-system-x86"},
		"an old QEMU":                    {func(p *patient) { p.qemu = "QEMU emulator version 6.2.0\n" }, "qemu", Fail, "6.2 is too old", "7.2"},
		"a strange QEMU":                 {func(p *patient) { p.qemu = "hello\n" }, "qemu", Warn, "does not say its version", ""},
		"another QEMU that is not there": {info("qemu", "/opt/qemu"), "qemu", Fail, "/opt/qemu is not installed", "apt"},
		"a damaged image":                {info("image_error", "vmlinux has 3 bytes"), "image", Fail, "vmlinux has 3 bytes", "auberge-image"},
		"no vsock backend":               {gone("/usr/libexec/" + backend), "vsock", Fail, backend + " is not installed", ".deb of it that lies beside"},
		"low disk":                       {info("state_free", uint64(500<<20)), "disk space", Warn, "500 MiB are free in /var/lib/auberge", "vmc disk usage"},
		"a full disk":                    {info("state_free", uint64(1<<20)), "disk space", Fail, "1 MiB", "vmc disk usage"},
		"a full /run":                    {info("runtime_free", uint64(1<<20)), "runtime space", Fail, "/run/auberge", "du -xsh"},
		"no helper":                      {gone("/run/auberge-helper/socket"), "helper", Fail, "/run/auberge-helper/socket", "systemctl enable --now auberge-helper.socket"},
		"no unit":                        {gone("/usr/lib/systemd/system/auberge-vm@.service"), "units", Fail, "auberge-vm@.service", "daemon-reload"},
		"no cgroups":                     {gone("/sys/fs/cgroup/cgroup.controllers"), "units", Warn, "version 2", "unified_cgroup_hierarchy"},
		"no tun":                         {gone("/dev/net/tun"), "network", Fail, "modprobe tun", "modules"},
		"no nf_tables":                   {says("/proc/modules", "x 1\n"), "network", Fail, "modprobe nf_tables", "modules"},
		"no forwarding": {func(p *patient) {
			says("/proc/sys/net/ipv4/ip_forward", "0\n")(p)
			says("/etc/auberge/auberge.conf", "[auberge-helper]\nip-forward = set\n#\nip-forward = keep\n")(p)
		}, "network", Fail, "does not forward", "ip_forward"},
		"no subordinate ids":  {gone("/etc/subuid"), "subordinate ids", Warn, "/etc/subuid", "usermod --add-subuids"},
		"few subordinate ids": {says("/etc/subgid", "alice:1:10\nbob:100000:65536\n"), "subordinate ids", Warn, "/etc/subgid", "usermod"},
	} {
		p := healthy(t)
		test.ill(p)
		for check, f := range p.examine() {
			switch {
			case check != test.check && f.Outcome != OK:
				t.Errorf("%s: also %+v", name, f)
			case check != test.check:
			case f.Outcome != test.outcome || !strings.Contains(f.Detail, test.detail) || !strings.Contains(f.Remedy, test.remedy):
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

// Kernel vsock is looked at in another way.
func TestKernelVsock(t *testing.T) {
	p := healthy(t)
	p.bus.info["vsock"] = "kernel"
	delete(p.files, "/usr/libexec/"+backend)
	all := p.examine()
	if f := all["vsock"]; f.Outcome != Fail || !strings.Contains(f.Remedy, "modprobe vhost_vsock") {
		t.Errorf("%+v", f)
	}
	if f := all["vsock exposure"]; f.Outcome != Warn || !strings.Contains(f.Detail, "any user") || !strings.Contains(f.Remedy, "vsock = user") {
		t.Errorf("%+v", f)
	}
	p.files["/dev/vhost-vsock"] = ""
	if f := p.examine()["vsock"]; f.Outcome != OK {
		t.Errorf("%+v", f)
	}
}

// Without a service, or a bus, everything that can be looked at still is.
func TestWithoutService(t *testing.T) {
	p := healthy(t)
	p.bus.info, p.bus.infoErr, p.bus.may = nil, errors.New("it hangs"), errors.New("it hangs")
	all := p.examine()
	if f := all["service"]; f.Outcome != Fail || !strings.Contains(f.Detail, "it hangs") || !strings.Contains(f.Remedy, "systemctl restart") {
		t.Errorf("%+v", f)
	}
	if f := all["image"]; f.Outcome != OK {
		t.Errorf("%+v", f)
	}
	p.files["/usr/share/auberge/image/vmlinux"] = "cut"
	delete(p.files, "/dev/kvm")
	p.host.Bus, p.host.BusError = nil, fmt.Errorf("no such socket")
	p.host.Free = func(path string) (uint64, error) {
		if strings.HasSuffix(path, "/auberge") {
			return 0, &os.PathError{Op: "statfs", Path: path, Err: fs.ErrNotExist}
		}
		return 1 << 20, nil
	}
	all = p.examine()
	for check, want := range map[string]string{"service": "no such socket", "image": "vmlinux", "disk space": "1 MiB"} {
		if f := all[check]; f.Outcome != Fail || !strings.Contains(f.Detail, want) || f.Remedy == "" {
			t.Errorf("%+v", f)
		}
	}
	if !Broken([]Finding{all["service"]}) || Broken([]Finding{all["qemu"]}) {
		t.Error("what is broken is not what fails")
	}
	if len(all) != len(checks) {
		t.Errorf("%v", maps.Keys(all))
	}
}
