package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/vmm"
)

// probeTimeout is how long a guest on KVM may take to come up. On a processor it
// needs well under a second; a busy host that is itself emulated, and emulates
// KVM's instructions, takes most of a minute.
const probeTimeout = 90 * time.Second

// probeCmdline keeps the guest quiet until it panics: each character is work for
// the host. The tests that are left out take longer than all the rest.
const probeCmdline = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"

// Probe says whether KVM runs guests on this machine: that the device opens
// is no proof, since hosts exist where no kernel boots on it. It boots the
// given kernel with no root file system and waits for the panic that this
// must end in, which proves that the kernel's own code ran to the end of its
// start. The error says why KVM cannot be used.
func (d Driver) Probe(ctx context.Context, kernel string) error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("KVM cannot be used: %w", err)
	}
	dev.Close()
	k, err := os.Open(kernel)
	if err != nil {
		return fmt.Errorf("probe KVM: %w", err)
	}
	defer k.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	path := d.Path
	if path == "" {
		path = "qemu-system-x86_64"
	}
	cmd := exec.CommandContext(ctx, path, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", sandbox,
		"-machine", "q35,vmport=off,smm=off,i8042=off,sata=off,smbus=off,usb=off,hpet=off", "-accel", "kvm", "-cpu", "host",
		"-m", "256M", "-kernel", procFD(firstFD), "-append", probeCmdline,
		"-chardev", "stdio,id=con0,signal=off", "-device", "isa-serial,chardev=con0")
	cmd.ExtraFiles = []*os.File{k}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := vmm.NewRing(64 << 10)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if bytes.Contains(out.Tail(), []byte("Kernel panic")) {
		return nil
	}
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("no guest came up within %v", probeTimeout)
	case err == nil:
		err = errors.New("the guest ended without a word")
	}
	return fmt.Errorf("KVM does not run guests on this machine: %v: %s", err, vmm.LastLines(out.Tail(), 3))
}
