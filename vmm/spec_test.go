package vmm_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// spec is one that a driver could run, with three descriptors.
func spec() *vmm.Spec {
	return &vmm.Spec{ID: "abc123", Accel: vmm.AccelTCG, CPUs: 1, MemoryMiB: 512, Kernel: 0, Initrd: 1,
		Disks: []vmm.Disk{{File: 2, Format: vmm.FormatRaw, Serial: "rootfs"}},
		Vsock: vmm.Vsock{Mode: vsock.ModeUser, CID: 33, Ports: []uint32{7777, 7778}},
		Network: &vmm.Network{Subnet: netip.MustParsePrefix("100.115.128.0/29"), Gateway: netip.MustParseAddr("100.115.128.1"),
			Guest: netip.MustParseAddr("100.115.128.2"), NameServer: netip.MustParseAddr("100.115.128.3")}}
}

func TestSpecCheck(t *testing.T) {
	if err := spec().Check(3); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(s *vmm.Spec)
		want   string // part of the refusal; empty when there must be none
	}{
		"without initrd":              {func(s *vmm.Spec) { s.Initrd = vmm.NoFile }, ""},
		"without disks":               {func(s *vmm.Spec) { s.Disks = nil }, ""},
		"without network":             {func(s *vmm.Spec) { s.Network = nil }, ""},
		"kernel vsock":                {func(s *vmm.Spec) { s.Vsock = vmm.Vsock{Mode: vsock.ModeKernel, CID: 3} }, ""},
		"kernel vsock with a device":  {func(s *vmm.Spec) { s.Vsock = vmm.Vsock{Mode: vsock.ModeKernel, CID: 3, Device: new(vmm.File(2))} }, ""},
		"a device beyond the files":   {func(s *vmm.Spec) { s.Vsock = vmm.Vsock{Mode: vsock.ModeKernel, CID: 3, Device: new(vmm.File(3))} }, "vsock device"},
		"a device in user mode":       {func(s *vmm.Spec) { s.Vsock.Device = new(vmm.File(0)) }, "vsock device"},
		"no id":                       {func(s *vmm.Spec) { s.ID = "" }, "VM id"},
		"an option as id":             {func(s *vmm.Spec) { s.ID = "a,debug-threads=on" }, "VM id"},
		"capitals in the id":          {func(s *vmm.Spec) { s.ID = "ABC" }, "VM id"},
		"a path as id":                {func(s *vmm.Spec) { s.ID = "../x" }, "VM id"},
		"a long id":                   {func(s *vmm.Spec) { s.ID = strings.Repeat("a", 33) }, "VM id"},
		"no accelerator":              {func(s *vmm.Spec) { s.Accel = "" }, "accelerator"},
		"no CPU":                      {func(s *vmm.Spec) { s.CPUs = 0 }, "CPUs"},
		"too many CPUs":               {func(s *vmm.Spec) { s.CPUs = 256 }, "CPUs"},
		"little memory":               {func(s *vmm.Spec) { s.MemoryMiB = 15 }, "memory"},
		"negative memory":             {func(s *vmm.Spec) { s.MemoryMiB = -1 }, "memory"},
		"no kernel":                   {func(s *vmm.Spec) { s.Kernel = vmm.NoFile }, "kernel"},
		"kernel beyond the files":     {func(s *vmm.Spec) { s.Kernel = 3 }, "kernel"},
		"initrd beyond the files":     {func(s *vmm.Spec) { s.Initrd = 3 }, "initrd"},
		"initrd before the files":     {func(s *vmm.Spec) { s.Initrd = -2 }, "initrd"},
		"the host's CID":              {func(s *vmm.Spec) { s.Vsock.CID = 2 }, "reserved"},
		"any CID":                     {func(s *vmm.Spec) { s.Vsock.CID = vsock.CIDAny }, "reserved"},
		"no vsock mode":               {func(s *vmm.Spec) { s.Vsock.Mode = "" }, "vsock mode"},
		"disk beyond the files":       {func(s *vmm.Spec) { s.Disks[0].File = 3 }, "disk 0"},
		"disk without a file":         {func(s *vmm.Spec) { s.Disks[0].File = vmm.NoFile }, "disk 0"},
		"disk without a format":       {func(s *vmm.Spec) { s.Disks[0].Format = "" }, "format"},
		"disk of a format to guess":   {func(s *vmm.Spec) { s.Disks[0].Format = "auto" }, "format"},
		"serial with a comma":         {func(s *vmm.Spec) { s.Disks[0].Serial = "a,b=c" }, "serial"},
		"serial with a newline":       {func(s *vmm.Spec) { s.Disks[0].Serial = "a\n" }, "serial"},
		"serial too long":             {func(s *vmm.Spec) { s.Disks[0].Serial = strings.Repeat("a", 21) }, "serial"},
		"network without addresses":   {func(s *vmm.Spec) { s.Network = &vmm.Network{} }, "network"},
		"guest outside its network":   {func(s *vmm.Spec) { s.Network.Guest = netip.MustParseAddr("10.0.0.1") }, "10.0.0.1"},
		"a TAP":                       {func(s *vmm.Spec) { s.Network.Tap = new(vmm.File(2)) }, ""},
		"a TAP beyond the files":      {func(s *vmm.Spec) { s.Network.Tap = new(vmm.File(3)) }, "TAP"},
		"a TAP without a file":        {func(s *vmm.Spec) { s.Network.Tap = new(vmm.NoFile) }, "TAP"},
		"name server of another kind": {func(s *vmm.Spec) { s.Network.NameServer = netip.MustParseAddr("::1") }, "::1"},
	} {
		s := spec()
		test.change(s)
		err := s.Check(3)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if err := spec().Check(0); err == nil {
		t.Error("without any descriptor it was accepted")
	}
}
