package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// versionTimeout bounds what asking for the version may take.
const versionTimeout = 5 * time.Second

// threads says how emulated processors run. Before version 8.1, a processor
// that translates code while another one changes it may keep what it has seen
// in between: one of a hundred Linux guests with two processors panics at boot,
// in a jump that was just patched (fixed by QEMU's commit deba78709a). There
// they take turns instead.
func (d Driver) threads(program string, cpus int) string {
	if cpus == 1 {
		return "multi"
	}
	version := d.Version
	if version == "" {
		version = askVersion(program)
	}
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || major < 8 || major == 8 && minor < 1 {
		return "single"
	}
	return "multi"
}

// askVersion returns what the program says its version is, or nothing.
func askVersion(program string) string {
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return ""
	}
	var version string
	fmt.Sscanf(string(out), "QEMU emulator version %s", &version)
	return version
}
