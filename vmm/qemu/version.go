package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// versionTimeout bounds what asking for the version may take.
const versionTimeout = 5 * time.Second

// emulation is what -accel and -cpu say of emulated processors.
//
// They have neither erms nor fsrm: the emulator runs the string instructions
// that these two recommend byte by byte, and without them a guest copies and
// boots a quarter faster.
//
// Before version 8.1 they take turns, and have no cx16:
//   - A processor that translates code while another one changes it may keep
//     what it has seen in between: one of a hundred Linux guests with two
//     processors panics at boot, in a jump that was just patched (fixed by QEMU's
//     commit deba78709a).
//   - CMPXCHG16B leaves other flags than it found, at times trap and nested task
//     among them, and Linux, which allocates memory by it, dies of a double fault
//     when an interrupt comes then. Version 10.0 is right.
func (d Driver) emulation(program string, cpus int) (accel, cpu string) {
	version := d.Version
	if version == "" {
		version = askVersion(program)
	}
	accel, cpu = "tcg,thread=multi", "max,erms=off,fsrm=off"
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err == nil && (major > 8 || major == 8 && minor >= 1) {
		return accel, cpu
	}
	if cpus > 1 {
		accel = "tcg,thread=single"
	}
	return accel, cpu + ",cx16=off"
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
