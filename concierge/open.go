package concierge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// An opening opens what a request names, each file with the rights of the one
// whose file it is.
type opening struct {
	service *Service
	caller  policy.Caller
	owner   policy.Owner
	name    string
}

type fdMap = map[pb.StartVmRequest_FdType]*os.File

// boot opens kernel, initrd and root file system. A descriptor wins over a
// path, a path over the installed image; with start_termina paths are
// ignored, as the seed says.
func (o opening) boot(ctx context.Context, req *pb.StartVmRequest, fds fdMap, p *plan) error {
	kernelPath, rootPath := req.GetVm().GetKernel(), req.GetVm().GetRootfs()
	if req.StartTermina {
		kernelPath, rootPath = "", ""
	}
	img, imgErr := o.service.installedImage()
	installed := func(path string) (*os.File, error) {
		if imgErr != nil {
			return nil, imgErr
		}
		p.image = img.key
		return os.Open(path)
	}
	kernel, err := o.bootFile(ctx, "kernel", fds[pb.StartVmRequest_KERNEL], kernelPath, maxKernel, checkKernel)
	if kernel == nil && err == nil {
		kernel, err = installed(img.kernel)
	}
	if err != nil {
		return err
	}
	p.spec.Kernel = p.add(kernel)

	initrd, err := o.bootFile(ctx, "initrd", fds[pb.StartVmRequest_INITRD], "", maxInitrd, nil)
	if initrd == nil && err == nil {
		initrd, err = installed(img.initramfs)
	}
	if err != nil {
		return err
	}
	p.spec.Initrd = p.add(initrd)

	fd := fds[pb.StartVmRequest_ROOTFS]
	if err := o.root(ctx, req, fd, rootPath, func() (*os.File, error) { return installed(img.rootfs) }, p); err != nil {
		return err
	}
	// A root file system of the caller's own knows nothing of our tools.
	if !req.StartTermina || fd != nil || img.tools == "" {
		return nil
	}
	tools, err := installed(img.tools)
	if err != nil {
		return err
	}
	p.spec.Disks = append(p.spec.Disks, vmm.Disk{File: p.add(tools), Format: vmm.FormatRaw, ReadOnly: true, Serial: toolsSerial})
	p.tremplin = img.tremplin
	return nil
}

// toolsSerial is how the guest's agent finds the disk with what containers need.
const toolsSerial = "tools"

// bootFile returns a sealed copy of a caller's file, or nothing when the
// caller names none.
func (o opening) bootFile(ctx context.Context, what string, fd *os.File, path string, limit int64, check func(r readerAt) error) (*os.File, error) {
	f := fd
	if f == nil {
		if path == "" {
			return nil, nil
		}
		var err error
		if f, err = o.service.cfg.Opener.Open(ctx, o.caller, path, policy.ReadOnly); err != nil {
			return nil, fmt.Errorf("the %s: %w", what, err)
		}
		defer f.Close()
	}
	sealed, err := seal(what, f, limit)
	if err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(sealed); err != nil {
			sealed.Close()
			if path == "" {
				path = "of the descriptor"
			}
			return nil, fmt.Errorf("the %s %s cannot be booted: %w", what, path, err)
		}
	}
	return sealed, nil
}

// root makes the root file system the first disk.
func (o opening) root(ctx context.Context, req *pb.StartVmRequest, fd *os.File, path string, installed func() (*os.File, error), p *plan) error {
	mode := policy.ReadOnly
	if req.WritableRootfs {
		mode = policy.ReadWrite
	}
	var f *os.File
	var err error
	switch {
	case fd != nil:
		if req.WritableRootfs && !writable(fd) {
			return errors.New("writable_rootfs is asked for, but the ROOTFS descriptor is not open for reading and writing")
		}
		f, err = dup(fd)
	case path != "":
		f, err = o.service.cfg.Opener.Open(ctx, o.caller, path, mode)
	case req.WritableRootfs:
		return errors.New("writable_rootfs needs a root file system of your own: the installed one is shared (changes to it go to an overlay and end with the VM)")
	default:
		f, err = installed()
	}
	if err != nil {
		return fmt.Errorf("the root file system: %w", err)
	}
	p.spec.Disks = append(p.spec.Disks, vmm.Disk{File: p.add(f), Format: vmm.FormatRaw, ReadOnly: !req.WritableRootfs, Serial: "rootfs"})
	return nil
}

// disks opens the request's disks and the storage descriptor, in the order in
// which the guest sees them.
func (o opening) disks(ctx context.Context, req *pb.StartVmRequest, fds fdMap, p *plan) error {
	first := deviceName(len(p.spec.Disks))
	for i, d := range req.Disks {
		if err := o.disk(ctx, i, d, p); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	storage := fds[pb.StartVmRequest_STORAGE]
	stateful := ""
	if len(req.Disks) > 0 {
		stateful = first
	}
	if storage != nil {
		if !writable(storage) {
			return errors.New("the STORAGE descriptor is not open for reading and writing")
		}
		f, err := dup(storage)
		if err != nil {
			return err
		}
		p.spec.Disks = append(p.spec.Disks, vmm.Disk{File: p.add(f), Format: vmm.FormatRaw, Serial: "cr-extra-disk"})
		device := deviceName(len(p.spec.Disks) - 1)
		if req.StartTermina && (stateful == "" || req.UseFdForStorage) {
			stateful = device
		} else {
			p.mounts = append(p.mounts, guestlink.Mount{Source: device, Target: "/mnt/external/0", FSType: "btrfs",
				CreateTarget: true, MakeFS: true, Permissions: 0o777})
		}
	}
	if req.StartTermina {
		if stateful == "" {
			return errNoStateful
		}
		// Containers are started at the owner's word alone, who is root of the
		// VM already: a container that is too gives nobody anything new.
		p.termina = &guestlink.Termina{StatefulDevice: stateful, Privileged: true}
		if p.disk.Has && deviceName(p.disk.Index) == stateful {
			p.disk.Stateful = true
			p.sparse = isSparse(p.files[p.spec.Disks[p.disk.Index].File])
		}
		for _, f := range req.Features {
			p.termina.Features = append(p.termina.Features, int32(f))
		}
	}
	return nil
}

func (o opening) disk(ctx context.Context, i int, d *pb.DiskImage, p *plan) error {
	var format vmm.Format
	switch d.ImageType {
	case pb.DiskImageType_DISK_IMAGE_RAW, pb.DiskImageType_DISK_IMAGE_AUTO:
		format = vmm.FormatRaw
	case pb.DiskImageType_DISK_IMAGE_QCOW2:
		format = vmm.FormatQcow2
	default:
		return fmt.Errorf("images of type %v are not supported", d.ImageType)
	}
	mode := policy.ReadOnly
	if d.Writable {
		mode = policy.ReadWrite
	}
	f, err := o.diskFile(ctx, d.Path, mode)
	if err != nil {
		return err
	}
	if format == vmm.FormatQcow2 {
		if err := checkQcow2(f); err != nil {
			f.Close()
			return fmt.Errorf("%s: %w", d.Path, err)
		}
	}
	p.spec.Disks = append(p.spec.Disks, vmm.Disk{File: p.add(f), Format: format, ReadOnly: !d.Writable, Serial: fmt.Sprintf("disk%d", i)})
	if own, _, err := o.service.diskPath(o.owner, o.name); err == nil && d.Writable && d.Path == own {
		p.disk = ownDisk{Has: true, Index: len(p.spec.Disks) - 1}
	}
	if d.DoMount {
		if d.MountPoint == "" {
			return errors.New("do_mount is set without a mount_point")
		}
		m := guestlink.Mount{Source: deviceName(len(p.spec.Disks) - 1), Target: d.MountPoint, FSType: d.Fstype,
			Flags: d.Flags, Data: d.Data, CreateTarget: true}
		if !d.Writable {
			m.Flags |= unix.MS_RDONLY
		}
		p.mounts = append(p.mounts, m)
	}
	return nil
}

// diskFile opens a disk image: one of the owner's own store by ownership,
// since the store is this service's, and any other with the caller's rights.
func (o opening) diskFile(ctx context.Context, path string, mode policy.Mode) (*os.File, error) {
	if path == "" {
		return nil, errors.New("it has no path")
	}
	store := o.service.storeDir(o.owner)
	if rest, ok := strings.CutPrefix(path, store+"/"); ok && !strings.Contains(rest, "/") {
		return openBeneath(store, rest, mode)
	}
	return o.service.cfg.Opener.Open(ctx, o.caller, path, mode)
}

// openBeneath opens an entry of a directory of ours, and nothing that it may
// point to.
func openBeneath(dir, name string, mode policy.Mode) (*os.File, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	flags := uint64(unix.O_RDONLY)
	if mode == policy.ReadWrite {
		flags = unix.O_RDWR
	}
	fd, err := unix.Openat2(d, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: cmp.Or(err, policy.ErrNotRegular)}
	}
	return f, nil
}

// deviceName is the guest's name of its i-th disk.
func deviceName(i int) string { return "/dev/vd" + string(rune('a'+i)) }

func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func dupAll(files []*os.File) ([]*os.File, error) {
	var own []*os.File
	for _, f := range files {
		d, err := dup(f)
		if err != nil {
			closeFiles(own)
			return nil, err
		}
		own = append(own, d)
	}
	return own, nil
}

// isSparse says that an image takes less of the host's disk than it may.
func isSparse(f *os.File) bool {
	var st unix.Stat_t
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil || err != nil {
		return false
	}
	return st.Blocks*512 < st.Size
}
