package qemu_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/qemu"
	"github.com/auberge-vm/auberge/vsock"
)

var update = flag.Bool("update", false, "write the golden files anew")

// openAll opens one empty file in each mode.
func openAll(t *testing.T, modes ...int) []*os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, m := range modes {
		f, err := os.OpenFile(path, m, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

func monitorFile(t *testing.T) *os.File {
	t.Helper()
	return openAll(t, os.O_RDONLY)[0]
}

func network(restricted bool) *vmm.Network {
	return &vmm.Network{Subnet: netip.MustParsePrefix("100.115.128.8/29"), Gateway: netip.MustParseAddr("100.115.128.9"),
		Guest: netip.MustParseAddr("100.115.128.10"), NameServer: netip.MustParseAddr("100.115.128.11"), Restricted: restricted}
}

func tapNetwork(f vmm.File) *vmm.Network {
	n := network(false)
	n.Tap = &f
	return n
}

func TestCommand(t *testing.T) {
	const ro, rw = os.O_RDONLY, os.O_RDWR
	for name, test := range map[string]struct {
		spec  vmm.Spec
		modes []int
	}{
		"typical": {spec: vmm.Spec{ID: "abc123", Accel: vmm.AccelKVM, CPUs: 2, MemoryMiB: 4096, Kernel: 0, Initrd: 1,
			Cmdline: "console=ttyS0 quiet panic=-1",
			Disks: []vmm.Disk{
				{File: 2, Format: vmm.FormatRaw, ReadOnly: true, Serial: "rootfs"},
				{File: 3, Format: vmm.FormatRaw, Serial: "disk0"},
				{File: 4, Format: vmm.FormatQcow2, Serial: "disk1"},
				{File: 5, Format: vmm.FormatRaw, ReadOnly: true},
			},
			Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 33, Ports: []uint32{7777}}, Network: network(false)},
			modes: []int{ro, ro, ro, rw, rw, ro}},
		"kernel vsock with its device": {spec: vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 512, Kernel: 0, Initrd: vmm.NoFile,
			Vsock: vmm.Vsock{Mode: vsock.ModeKernel, CID: 40, Device: new(vmm.File(1))}, Network: network(true)},
			modes: []int{ro, rw}},
		"tap": {spec: vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 512, Kernel: 0, Initrd: vmm.NoFile,
			Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 40}, Network: tapNetwork(1)},
			modes: []int{ro, rw}},
		"kernel vsock and emulation": {spec: vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 512, Kernel: 0, Initrd: vmm.NoFile,
			Vsock: vmm.Vsock{Mode: vsock.ModeKernel, CID: 4294967294}, Network: network(true)},
			modes: []int{ro}},
		"hostile": {spec: vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 255, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile,
			Cmdline:    "a=b,c -device x \"quoted\" 'too' $HOME ${x} -S",
			Disks:      []vmm.Disk{{File: 1, Format: vmm.FormatRaw, Serial: "a,share-rw=on"}},
			Vsock:      vmm.Vsock{Mode: vsock.ModeUser, CID: 3},
			OEMStrings: []string{"a,b,,c", ",path=/etc/shadow", "-device", "", "line\nbreak", "é\"\\"}},
			modes: []int{ro, rw}},
		"read-only disk on a writable descriptor": {spec: vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile,
			Disks: []vmm.Disk{{File: 1, Format: vmm.FormatRaw, ReadOnly: true}},
			Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 3}},
			modes: []int{ro, rw}},
	} {
		t.Run(name, func(t *testing.T) {
			files, monitor := openAll(t, test.modes...), monitorFile(t)
			cmd, err := qemu.Driver{Path: "/usr/bin/qemu-system-x86_64", Version: "10.0.2"}.Command(&test.spec, files, monitor)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(cmd.ExtraFiles, append(slices.Clone(files), monitor)) {
				t.Errorf("it inherits %v", cmd.ExtraFiles)
			}
			var text strings.Builder
			for _, a := range cmd.Args {
				fmt.Fprintf(&text, "%q\n", a)
			}
			golden := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), text.String()); diff != "" {
				t.Errorf("the command has changed (go test ./vmm/qemu -update accepts it):\n%s", diff)
			}
		})
	}
}

// Building the command leaves the files as they are: other processes share
// them.
func TestCommandLeavesFilesAlone(t *testing.T) {
	files := openAll(t, os.O_RDONLY, os.O_RDWR)
	spec := &vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile,
		Disks: []vmm.Disk{{File: 1, Format: vmm.FormatRaw}}, Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 3}}
	if _, err := (qemu.Driver{Path: "/bin/true"}).Command(spec, files, monitorFile(t)); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := f.Stat(); err != nil {
			t.Error(err)
		}
	}
	files[1].Close()
	if _, err := (qemu.Driver{Path: "/bin/true"}).Command(spec, files, monitorFile(t)); err == nil {
		t.Error("a closed disk was accepted")
	}
}

func TestCommandWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	spec := &vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile}
	_, err := qemu.Driver{}.Command(spec, openAll(t, os.O_RDONLY), monitorFile(t))
	if err == nil || !strings.Contains(err.Error(), "qemu-system-x86 installed") {
		t.Errorf("without QEMU: %v", err)
	}
}

// Processors are emulated side by side, and have what other programs expect of
// them, only where QEMU can do that.
func TestEmulationByVersion(t *testing.T) {
	const all, some = "max,erms=off,fsrm=off", "max,erms=off,fsrm=off,cx16=off"
	for _, test := range []struct {
		says, version string
		cpus          int
		accel, cpu    string
	}{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "", 2, "tcg,thread=single", some},
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "", 1, "tcg,thread=multi", some},
		{"QEMU emulator version 8.0.4", "", 4, "tcg,thread=single", some},
		{"QEMU emulator version 8.1.0", "", 4, "tcg,thread=multi", all},
		{"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", "", 2, "tcg,thread=multi", all},
		{"something else", "", 2, "tcg,thread=single", some},
		{"", "", 2, "tcg,thread=single", some},
		{"QEMU emulator version 7.2.22", "9.0.0", 2, "tcg,thread=multi", all},
	} {
		program := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho '"+test.says+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		spec := &vmm.Spec{ID: "abc", Accel: vmm.AccelTCG, CPUs: test.cpus, MemoryMiB: 16, Kernel: 0, Initrd: vmm.NoFile,
			Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 3}}
		cmd, err := qemu.Driver{Path: program, Version: test.version}.Command(spec, openAll(t, os.O_RDONLY), monitorFile(t))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(cmd.Args, test.accel) || !slices.Contains(cmd.Args, test.cpu) {
			t.Errorf("%q, %d CPUs: want %s and %s, got %q", test.says, test.cpus, test.accel, test.cpu, cmd.Args)
		}
	}
}
