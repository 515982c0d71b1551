package vmc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// startOptions are the flags of start.
type startOptions struct {
	kernel, initrd, rootfs string
	writableRootfs         bool
	params, oem, disks     []string
	cpus, timeout          uint32
	size                   string
	shell                  bool
	user                   string
}

func (a *app) startCommand() *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Start a VM; make its disk when it has none",
		Long: "Start the VM called NAME from the installed guest image, prepared for containers,\n" +
			"and make its disk first when it has none. With --kernel, boot that kernel instead;\n" +
			"the VM then needs no disk and is not prepared for containers.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.start(cmd.Context(), args[0], &o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.kernel, "kernel", "", "boot this kernel (an uncompressed vmlinux or a bzImage)")
	f.StringVar(&o.initrd, "initrd", "", "boot with this initramfs")
	f.StringVar(&o.rootfs, "rootfs", "", "use this raw image as the root file system")
	f.BoolVar(&o.writableRootfs, "writable-rootfs", false, "let the VM write to the image given by --rootfs")
	f.StringArrayVar(&o.params, "kernel-param", nil, "add a parameter to the kernel's command line (may be repeated)")
	f.StringArrayVar(&o.oem, "oem-string", nil, "add an SMBIOS OEM string (may be repeated)")
	f.StringArrayVar(&o.disks, "extra-disk", nil, "add a raw disk image, writable (may be repeated)")
	f.Uint32Var(&o.cpus, "cpus", 0, "number of CPUs (default: as configured, else all)")
	f.Uint32Var(&o.timeout, "timeout", 0, "seconds that the guest has to come up (default 60, emulated 180)")
	f.StringVar(&o.size, "size", "", "size of the disk if it has to be made, such as 20G (default: nine tenths of the free space, sparse)")
	f.BoolVar(&o.shell, "shell", false, "open a shell in the VM when it is up")
	f.StringVar(&o.user, "user", "", "user of the shell")
	return cmd
}

func (a *app) start(ctx context.Context, name string, o *startOptions) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	req, files, err := a.startRequest(o)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	req.Name, req.OwnerId = name, a.owner
	if req.StartTermina {
		disk, err := a.ensureDisk(ctx, s, name, o.size)
		if err != nil {
			return err
		}
		req.Disks = append([]*pb.DiskImage{disk}, req.Disks...)
	}
	progress := a.watch(s, name)
	var resp pb.StartVmResponse
	err = s.call(ctx, "StartVm", req, &resp, files...)
	progress.end()
	if err != nil {
		return err
	}
	if !resp.Success {
		return refused("start "+name, resp.FailureReason)
	}
	if o.shell {
		return a.shell(ctx, s, name, o.user)
	}
	if a.json {
		return a.printJSON(&resp)
	}
	fmt.Fprintf(a.out, "%s is %s: address %s, pid %d, cid %d\n", name, statusWord(resp.Status),
		address(resp.VmInfo.GetIpv4Address()), resp.VmInfo.GetPid(), resp.VmInfo.GetCid())
	return nil
}

// startRequest is what the flags say, and the files that go with it.
func (a *app) startRequest(o *startOptions) (*pb.StartVmRequest, []*os.File, error) {
	req := &pb.StartVmRequest{
		StartTermina: o.kernel == "", Cpus: o.cpus, Timeout: o.timeout,
		KernelParams: o.params, OemStrings: o.oem, WritableRootfs: o.writableRootfs,
	}
	for _, d := range o.disks {
		path, err := filepath.Abs(d)
		if err != nil {
			return nil, nil, err
		}
		req.Disks = append(req.Disks, &pb.DiskImage{Path: path, Writable: true})
	}
	if o.kernel == "" {
		if o.rootfs != "" || o.initrd != "" {
			return nil, nil, withCode(ExitUsage, errors.New("--rootfs and --initrd go with --kernel"))
		}
		return req, nil, nil
	}
	// The service opens the paths with our rights; the initramfs has no path
	// in the contract and goes as a descriptor.
	kernel, err := filepath.Abs(o.kernel)
	if err != nil {
		return nil, nil, err
	}
	req.Vm = &pb.VirtualMachineSpec{Kernel: kernel}
	if o.rootfs != "" {
		if req.Vm.Rootfs, err = filepath.Abs(o.rootfs); err != nil {
			return nil, nil, err
		}
	}
	if o.initrd == "" {
		return req, nil, nil
	}
	f, err := os.Open(o.initrd)
	if err != nil {
		return nil, nil, withCode(ExitFailed, err)
	}
	req.Fds = []pb.StartVmRequest_FdType{pb.StartVmRequest_INITRD}
	return req, []*os.File{f}, nil
}

// ensureDisk finds or makes the VM's disk.
func (a *app) ensureDisk(ctx context.Context, s *session, name, size string) (*pb.DiskImage, error) {
	bytes, err := parseSize(size)
	if err != nil {
		return nil, withCode(ExitUsage, err)
	}
	var list pb.ListVmDisksResponse
	err = s.call(ctx, "ListVmDisks", &pb.ListVmDisksRequest{CryptohomeId: a.owner, VmName: name}, &list)
	if err != nil {
		return nil, err
	}
	if !list.Success {
		return nil, refused("look for the disk of "+name, list.FailureReason)
	}
	for _, d := range list.Images {
		if d.Name == name {
			return &pb.DiskImage{Path: d.Path, ImageType: d.ImageType, Writable: true}, nil
		}
	}
	resp, err := a.createDisk(ctx, s, name, bytes)
	if err != nil {
		return nil, err
	}
	return &pb.DiskImage{Path: resp.DiskPath, ImageType: pb.DiskImageType_DISK_IMAGE_RAW, Writable: true}, nil
}
