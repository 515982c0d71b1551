package vmm

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/auberge-vm/auberge/vsock"
)

// A Spec says what a VM is made of. Files are not named by path: File fields
// are positions in the list of descriptors that travels with the Spec.
type Spec struct {
	// ID names the VM on the host: a word of [0-9a-z], unique while the VM
	// lives. It is what appears on command lines and never what a user wrote.
	ID string `json:"id"`
	// Name and Owner are what people call the VM and its owner. They go into
	// the supervisor's log and nowhere else.
	Name  string `json:"name,omitempty"`
	Owner string `json:"owner,omitempty"`
	// Accel is the accelerator, AccelKVM or AccelTCG.
	Accel     Accel `json:"accel"`
	CPUs      int   `json:"cpus"`
	MemoryMiB int64 `json:"memory_mib"`

	Kernel File `json:"kernel"`
	Initrd File `json:"initrd"`
	// Cmdline is the kernel's command line.
	Cmdline string `json:"cmdline"`
	// Disks appear to the guest as /dev/vda, /dev/vdb and so on.
	Disks []Disk `json:"disks"`

	Vsock   Vsock    `json:"vsock"`
	Network *Network `json:"network,omitempty"`
	// OEMStrings go into the SMBIOS tables (type 11).
	OEMStrings []string `json:"oem_strings,omitempty"`
}

// A File is a position in the descriptors that travel with a Spec, or NoFile.
type File int

// NoFile stands where a Spec has no file.
const NoFile File = -1

// A Format is the format of a disk image. It is always given: guessing it
// from the content would let a guest turn its raw disk into a qcow2 that
// names any file of the host.
type Format string

const (
	FormatRaw   Format = "raw"
	FormatQcow2 Format = "qcow2"
)

// A Disk is one block device.
type Disk struct {
	File     File   `json:"file"`
	Format   Format `json:"format"`
	ReadOnly bool   `json:"read_only"`
	// Serial is what the guest reads as the disk's serial, up to 20 bytes of
	// [0-9A-Za-z_-].
	Serial string `json:"serial,omitempty"`
}

// Vsock says how streams between host and guest travel.
type Vsock struct {
	Mode vsock.Mode `json:"mode"`
	CID  uint32     `json:"cid"`
	// Ports are the host's ports on which the supervisor listens before the
	// guest runs; user mode only.
	Ports []uint32 `json:"ports,omitempty"`
	// Device is an open /dev/vhost-vsock that has the CID already; kernel mode
	// only. Without it the hypervisor opens the device.
	Device *File `json:"device,omitempty"`
}

// Network is a network interface. Guest, gateway and name server are addresses
// of Subnet.
type Network struct {
	Subnet     netip.Prefix `json:"subnet"`
	Gateway    netip.Addr   `json:"gateway"`
	Guest      netip.Addr   `json:"guest"`
	NameServer netip.Addr   `json:"name_server"`
	// Restricted leaves the guest no way out.
	Restricted bool `json:"restricted"`
	// Tap is the TAP interface that the host has made for the VM, whose rules
	// say what the guest reaches. Without it the network is in user mode, a
	// part of the hypervisor.
	Tap *File `json:"tap,omitempty"`
}

// An Accel is an accelerator.
type Accel string

const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg" // software emulation
)

// MaxCPUs is the most that a VM can have.
const MaxCPUs = 255

// Check refuses a Spec that no driver could run. files is the number of
// descriptors that came with it.
func (s *Spec) Check(files int) error {
	has := func(f File) bool { return f >= 0 && int(f) < files }
	switch {
	case !validID(s.ID):
		return fmt.Errorf("VM id %q is not a word of [0-9a-z]", s.ID)
	case s.Accel != AccelKVM && s.Accel != AccelTCG:
		return fmt.Errorf("unknown accelerator %q", s.Accel)
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs are not between 1 and %d", s.CPUs, MaxCPUs)
	case s.MemoryMiB < 16:
		return fmt.Errorf("%d MiB of memory are too few", s.MemoryMiB)
	case !has(s.Kernel):
		return fmt.Errorf("the kernel's descriptor is missing")
	case s.Initrd != NoFile && !has(s.Initrd):
		return fmt.Errorf("the initrd's descriptor is missing")
	case s.Vsock.CID < 3 || s.Vsock.CID == vsock.CIDAny:
		return fmt.Errorf("CID %d is reserved", s.Vsock.CID)
	case s.Vsock.Mode != vsock.ModeUser && s.Vsock.Mode != vsock.ModeKernel:
		return fmt.Errorf("unknown vsock mode %q", s.Vsock.Mode)
	case s.Vsock.Device != nil && (s.Vsock.Mode != vsock.ModeKernel || !has(*s.Vsock.Device)):
		return fmt.Errorf("the descriptor of the vsock device is missing")
	}
	for i, d := range s.Disks {
		if !has(d.File) {
			return fmt.Errorf("the descriptor of disk %d is missing", i)
		}
		if d.Format != FormatRaw && d.Format != FormatQcow2 {
			return fmt.Errorf("disk %d has no known format: %q", i, d.Format)
		}
		if !serial.MatchString(d.Serial) {
			return fmt.Errorf("the serial of disk %d is not up to 20 of [0-9A-Za-z_-]: %q", i, d.Serial)
		}
	}
	if n := s.Network; n != nil {
		for _, a := range []netip.Addr{n.Gateway, n.Guest, n.NameServer} {
			if !a.Is4() || !n.Subnet.Contains(a) {
				return fmt.Errorf("%v is no address of the network %v", a, n.Subnet)
			}
		}
		if n.Tap != nil && !has(*n.Tap) {
			return fmt.Errorf("the descriptor of the TAP interface is missing")
		}
	}
	return nil
}

var serial = regexp.MustCompile(`^[0-9A-Za-z_-]{0,20}$`)

func validID(id string) bool {
	if id == "" || len(id) > 32 {
		return false
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
