package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func checkKVM(_ context.Context, h *Host, known info) Finding {
	const slow = "VMs are emulated, several times slower"
	intel, amd := strings.Contains(h.read("/proc/cpuinfo"), " vmx "), strings.Contains(h.read("/proc/cpuinfo"), " svm ")
	module := "kvm_intel"
	if amd {
		module = "kvm_amd"
	}
	fi, err := os.Stat(h.path("/dev/kvm"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && !intel && !amd:
		return warn("this processor has no virtualization, or hides it: "+slow,
			"turn VT-x or AMD-V on in the firmware; in a VM, turn nested virtualization on where that VM runs")
	case errors.Is(err, fs.ErrNotExist):
		return warn("there is no /dev/kvm: "+slow,
			fmt.Sprintf("modprobe %s; see dmesg if that fails, virtualization may be off in the firmware", module))
	case err != nil:
		return warn(fmt.Sprintf("/dev/kvm cannot be looked at: %v", err), "")
	}
	if fi.Mode().Perm()&0o060 != 0o060 && fi.Mode().Perm()&0o006 != 0o006 {
		return warn(fmt.Sprintf("/dev/kvm has mode %v, and VMs' users get to it by the group kvm: %s", fi.Mode().Perm(), slow),
			"udevadm trigger /dev/kvm sets its mode again; udev's rule is in 50-udev-default.rules")
	}
	nested := ""
	if v := strings.TrimSpace(h.read("/sys/module/" + module + "/parameters/nested")); v == "Y" || v == "1" {
		nested = ", and guests can have it too"
	}
	switch known.word("accel") {
	case "tcg":
		return warn(fmt.Sprintf("/dev/kvm is there and not used (%s): %s", known.word("accel_reason"), slow),
			"the service probes again after a reboot, or when it is restarted without accel.json in its runtime directory; accel = tcg in its configuration turns KVM off")
	case "kvm":
		return ok("KVM runs guests" + nested)
	}
	return ok("/dev/kvm is there" + nested + "; the first VM will show whether it runs guests")
}

func checkProcessor(ctx context.Context, h *Host, _ info) Finding {
	if h.Bus == nil {
		return warn("not known: the bus cannot be reached", "")
	}
	allowed, reason, err := h.Bus.LaunchAllowed(ctx)
	switch {
	case err != nil:
		return warn(fmt.Sprintf("not known: %v", err), "")
	case !allowed:
		return fail("VMs are not started: "+reason,
			"install the processor's microcode and a kernel with its mitigations; or set allow-vulnerable-cpu = true in /etc/auberge/auberge.conf")
	}
	return ok("no flaw that the kernel does nothing about")
}

func checkQEMU(ctx context.Context, h *Host, known info) Finding {
	const install = "apt install qemu-system-x86 (Fedora: dnf install qemu-system-x86-core)"
	name := cmp.Or(known.word("qemu"), "qemu-system-x86_64")
	program, found := h.program(name)
	if !found {
		return fail(name+" is not installed", install)
	}
	out, err := h.Run(ctx, program, "--version")
	if err != nil {
		return fail(fmt.Sprintf("%s does not run: %v", program, err), install)
	}
	var version string
	var major, minor int
	fmt.Sscanf(out, "QEMU emulator version %s", &version)
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n != 2 {
		return warn(fmt.Sprintf("%s does not say its version", program), "")
	}
	detail := fmt.Sprintf("%s %d.%d", program, major, minor)
	switch {
	case major < 7 || major == 7 && minor < 2:
		return fail(detail+" is too old", "QEMU 7.2 or newer is needed")
	case major < 8 || major == 8 && minor < 1:
		return ok(detail + " (without KVM the processors of a guest take turns before 8.1)")
	}
	return ok(detail)
}

func checkImage(_ context.Context, h *Host, known info) Finding {
	const install = "install the package auberge-image, or build one with make image and set image-dir"
	if text := known.word("image_error"); text != "" {
		return fail(text, install)
	}
	if known != nil {
		return ok("the service has a guest image")
	}
	const dir = "/usr/share/auberge/image"
	b, err := os.ReadFile(h.path(dir + "/manifest.json"))
	if err != nil {
		return fail(fmt.Sprintf("there is no guest image: %v", err), install)
	}
	var m struct {
		Format int `json:"format"`
		Files  []struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		} `json:"files"`
	}
	if err := json.Unmarshal(b, &m); err != nil || len(m.Files) == 0 {
		return fail(fmt.Sprintf("%s/manifest.json is damaged", dir), install)
	}
	for _, f := range m.Files {
		fi, err := os.Stat(h.path(filepath.Join(dir, filepath.Base(f.Name))))
		if err != nil || fi.Size() != f.Size {
			return fail(fmt.Sprintf("the guest image in %s is damaged: %s is missing or has another size", dir, f.Name), install)
		}
	}
	return ok("the guest image in " + dir + " is whole")
}

// Space below which something is going to fail, and below which it may.
const (
	littleDisk, noDisk       = 1 << 30, 128 << 20
	littleRuntime, noRuntime = 32 << 20, 4 << 20
)

func checkDisk(_ context.Context, h *Host, known info) Finding {
	return space(h, known, "state", "/var/lib/auberge", littleDisk, noDisk,
		"remove disks that nobody needs (vmc disk usage --all-users tells whose they are), or make the file system larger")
}

func checkRuntime(_ context.Context, h *Host, known info) Finding {
	return space(h, known, "runtime", "/run/auberge", littleRuntime, noRuntime,
		"find out what fills /run (du -xsh /run/*): VMs cannot be started, or found again after a restart, without space there")
}

func space(h *Host, known info, what, dir string, little, none uint64, remedy string) Finding {
	if d := known.word(what + "_dir"); d != "" {
		dir = d
	}
	free, ok1 := known[what+"_free"].(uint64)
	if !ok1 {
		var err error
		if free, err = h.Free(h.path(dir)); errors.Is(err, fs.ErrNotExist) {
			free, err = h.Free(h.path(filepath.Dir(dir)))
			if err != nil {
				return warn(fmt.Sprintf("not known: %v", err), "")
			}
		} else if err != nil {
			return warn(fmt.Sprintf("not known: %v", err), "")
		}
	}
	detail := fmt.Sprintf("%d MiB are free in %s", free>>20, dir)
	switch {
	case free < none:
		return fail(detail, remedy)
	case free < little:
		return warn(detail, remedy)
	}
	return ok(detail)
}
