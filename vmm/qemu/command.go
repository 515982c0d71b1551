package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// firstFD is the number of the first ExtraFiles descriptor in a child.
const firstFD = 3

// sandbox is QEMU's filter of system calls, as tight as it can be.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// Driver runs QEMU.
type Driver struct {
	// Path is the program; empty means qemu-system-x86_64 from PATH.
	Path string
	// Version is its version, such as 10.0.2; where it is empty and matters,
	// the program is asked.
	Version string
}

var _ vmm.Driver = Driver{}

// Command builds QEMU's command line. Nothing in it comes from a user but
// numbers, the kernel's command line, which is an argument of its own, and OEM
// strings, whose commas are doubled.
func (d Driver) Command(spec *vmm.Spec, files []*os.File, monitor *os.File) (*exec.Cmd, error) {
	path := d.Path
	if path == "" {
		path = "qemu-system-x86_64"
	}
	cmd := exec.Command(path, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "auberge-"+spec.ID,
		"-sandbox", sandbox)
	if cmd.Err != nil {
		return nil, fmt.Errorf("find QEMU: %w (is the package qemu-system-x86 installed?)", cmd.Err)
	}
	cmd.ExtraFiles = append(append([]*os.File{}, files...), monitor)
	add := func(args ...string) { cmd.Args = append(cmd.Args, args...) }
	fd := func(f vmm.File) int { return firstFD + int(f) }

	add("-machine", "q35,vmport=off,smm=off,i8042=off,sata=off,smbus=off,usb=off,hpet=off,"+
		"dump-guest-core=off,memory-backend=mem")
	switch spec.Accel {
	case vmm.AccelKVM:
		add("-accel", "kvm", "-cpu", "host")
	default:
		accel, cpu := d.emulation(cmd.Path, spec.CPUs)
		add("-accel", accel, "-cpu", cpu)
	}
	memory := strconv.FormatInt(spec.MemoryMiB, 10) + "M"
	add("-smp", strconv.Itoa(spec.CPUs), "-m", memory,
		"-object", "memory-backend-memfd,id=mem,share=on,size="+memory)

	// /proc/self/fd reopens the file, so its inode must be readable to QEMU's
	// user: an installed image is, and a caller's file comes as a memfd.
	add("-kernel", procFD(fd(spec.Kernel)), "-append", spec.Cmdline)
	if spec.Initrd != vmm.NoFile {
		add("-initrd", procFD(fd(spec.Initrd)))
	}
	for i, disk := range spec.Disks {
		readOnly, err := openReadOnly(files[disk.File])
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
		addDisk(add, i, disk, fd(disk.File), readOnly)
	}
	addVsock(add, spec.Vsock, fd)
	if n := spec.Network; n != nil {
		netdev := fmt.Sprintf("user,id=net0,ipv6=off,net=%s,host=%s,dns=%s,dhcpstart=%s,restrict=%s",
			n.Subnet, n.Gateway, n.NameServer, n.Guest, onOff(n.Restricted))
		if n.Tap != nil {
			// The kernel's vhost-net would be faster, for a device more that a
			// guest's packets reach the kernel through.
			netdev = fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", fd(*n.Tap))
		}
		add("-netdev", netdev, "-device", "virtio-net-pci,netdev=net0,disable-legacy=on,romfile=")
	}
	add("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0,disable-legacy=on",
		"-chardev", "stdio,id=con0,signal=off", "-device", "isa-serial,chardev=con0",
		"-chardev", fmt.Sprintf("socket,id=mon0,fd=%d,server=on,wait=off", firstFD+len(files)),
		"-mon", "chardev=mon0,mode=control",
		"-rtc", "base=utc")
	for _, s := range spec.OEMStrings {
		add("-smbios", "type=11,value="+escape(s))
	}
	return cmd, nil
}

// openReadOnly says whether a descriptor cannot be written. QEMU opens an
// fdset only in the mode that the descriptor has, whatever the disk's.
func openReadOnly(f *os.File) (bool, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	flags := 0
	if cerr := raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }); cerr != nil {
		return false, cerr
	}
	return flags&unix.O_ACCMODE == unix.O_RDONLY, err
}

func addDisk(add func(...string), i int, disk vmm.Disk, fd int, readOnly bool) {
	set := i + 1
	node := diskNode(i)
	add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set),
		"-blockdev", object{"driver": "file", "node-name": node + "-file",
			"filename":  fmt.Sprintf("/dev/fdset/%d", set),
			"read-only": readOnly, "discard": "unmap"}.String())
	format := object{"driver": string(disk.Format), "node-name": node, "file": node + "-file",
		"read-only": disk.ReadOnly, "discard": "unmap"}
	if disk.Format == vmm.FormatQcow2 {
		// Whatever the header says, QEMU follows it to no other file.
		format["backing"] = nil
	}
	add("-blockdev", format.String())
	// QEMU would pause a VM whose host has no space left, for somebody to come
	// and resume it; a guest that gets an error can still be talked to.
	device := fmt.Sprintf("virtio-blk-pci,drive=%s,disable-legacy=on,werror=report,rerror=report", node)
	if disk.Serial != "" {
		device += ",serial=" + escape(disk.Serial)
	}
	add("-device", device)
}

// An object is an option in QEMU's JSON form, which can say null.
type object map[string]any

func (o object) String() string {
	b, err := json.Marshal(map[string]any(o))
	if err != nil {
		panic(err) // strings, booleans and nil always marshal
	}
	return string(b)
}

func addVsock(add func(...string), v vmm.Vsock, fd func(vmm.File) int) {
	if v.Mode == vsock.ModeKernel {
		device := fmt.Sprintf("vhost-vsock-pci,guest-cid=%d,disable-legacy=on", v.CID)
		if v.Device != nil {
			device += fmt.Sprintf(",vhostfd=%d", fd(*v.Device))
		}
		add("-device", device)
		return
	}
	add("-chardev", "socket,id=vsock0,path="+vmm.BackendSocket,
		"-device", "vhost-user-vsock-pci,chardev=vsock0,disable-legacy=on")
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// escape doubles commas, which separate options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
