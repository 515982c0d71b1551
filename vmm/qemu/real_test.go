package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/qemu"
	"github.com/auberge-vm/auberge/vsock"
)

// noKernel is what QEMU takes for a Linux kernel (Documentation/arch/x86/boot.rst)
// and must never be run.
func noKernel(t *testing.T) *os.File {
	t.Helper()
	b := make([]byte, 64<<10)
	b[0x1f1] = 4 // setup sectors
	copy(b[0x1fe:], "\x55\xaa")
	copy(b[0x202:], "HdrS\x0c\x02")
	b[0x211] = 1                        // loaded high
	copy(b[0x22c:], "\xff\xff\xff\x7f") // highest address of an initrd
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// startReal starts a real QEMU from a driver's command, halted before its
// first instruction, and without the vsock device, which needs its backend.
func startReal(t *testing.T, spec *vmm.Spec, files []*os.File) (*exec.Cmd, *bytes.Buffer, *qemu.Monitor) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "monitor")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer f.Close()
	cmd, err := qemu.Driver{}.Command(spec, files, f)
	if err != nil {
		t.Fatalf("%v; make deps installs what tests need", err)
	}
	var args []string
	for i := 0; i < len(cmd.Args); i++ {
		if i+1 < len(cmd.Args) && (strings.Contains(cmd.Args[i+1], "id=vsock0") || strings.Contains(cmd.Args[i+1], "chardev=vsock0")) {
			i++
			continue
		}
		args = append(args, cmd.Args[i])
	}
	cmd.Args = append(args, "-S")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := qemu.Driver{}.Monitor(ctx, path)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("%v: %s", err, &out)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		m.Close()
	})
	return cmd, &out, m.(*qemu.Monitor)
}

// QEMU takes the command, hostile strings and all, and sees the disks as they
// were meant: what may not be written cannot be, whatever the descriptor.
func TestRealQEMU(t *testing.T) {
	disks := openAll(t, os.O_RDWR, os.O_RDONLY)
	disks = append(disks, openAll(t, os.O_RDWR)...)
	files := append(append([]*os.File{noKernel(t)}, disks...), openAll(t, os.O_RDONLY)...)
	spec := &vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 64, Kernel: 0, Initrd: 4,
		Cmdline: "console=ttyS0 a=b,c \"x\" -S",
		Disks: []vmm.Disk{
			{File: 1, Format: vmm.FormatRaw, ReadOnly: true, Serial: "a,b"},
			{File: 2, Format: vmm.FormatRaw, ReadOnly: true, Serial: "disk0"},
			{File: 3, Format: vmm.FormatRaw, Serial: "disk1"},
		},
		Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 3}, Network: network(true),
		OEMStrings: []string{"a,b,,c", ",path=/etc/shadow", "-device", "line\nbreak", "é\"\\"}}
	cmd, out, m := startReal(t, spec, files)
	var status struct {
		Status  string
		Running bool
	}
	if err := m.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Running {
		t.Errorf("status %+v, %v", status, err)
	}
	var blocks []struct {
		QDev     string
		Inserted struct {
			NodeName string `json:"node-name"`
			RO       bool
		}
	}
	if err := m.Execute(t.Context(), "query-block", nil, &blocks); err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 3 || !blocks[0].Inserted.RO || !blocks[1].Inserted.RO || blocks[2].Inserted.RO {
		t.Errorf("disks: %+v", blocks)
	}
	var serial string
	if err := m.Execute(t.Context(), "qom-get", map[string]any{"path": strings.TrimSuffix(blocks[0].QDev, "/virtio-backend"), "property": "serial"}, &serial); err != nil || serial != "a,b" {
		t.Errorf("the serial is %q, %v", serial, err)
	}
	if err := m.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("QEMU ended: %v: %s", err, out)
	}
	if m.Ended() {
		t.Error("the guest, which never ran, has ended by itself")
	}
}

func TestRealQEMUKilled(t *testing.T) {
	spec := &vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 64, Kernel: 0, Initrd: vmm.NoFile, Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 3}}
	cmd, _, m := startReal(t, spec, []*os.File{noKernel(t)})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if m.Ended() {
		t.Error("a killed QEMU is the guest's doing")
	}
	// Nobody is there any more; whatever Quit says, it must not hang.
	m.Quit(t.Context())
	cmd.Wait()
}

// Where KVM cannot be used, the error says why; where it can, only a kernel
// that ran to its end counts.
func TestProbe(t *testing.T) {
	program := func(script string) qemu.Driver {
		path := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return qemu.Driver{Path: path}
	}
	kernel := noKernel(t).Name()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		err := program("echo Kernel panic").Probe(t.Context(), kernel)
		if err == nil || !strings.Contains(err.Error(), "KVM cannot be used: open /dev/kvm: ") {
			t.Errorf("without KVM: %v", err)
		}
		return
	}
	kvm.Close()
	if err := program("echo 'Kernel panic - not syncing'").Probe(t.Context(), kernel); err != nil {
		t.Errorf("a kernel that ran: %v", err)
	}
	for script, want := range map[string]string{
		"echo failed to set MSR >&2; exit 1": "failed to set MSR",
		"exit 0":                             "without a word",
	} {
		if err := program(script).Probe(t.Context(), kernel); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	if err := program("").Probe(t.Context(), "/nowhere/vmlinux"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a kernel: %v", err)
	}
}
