package vmc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// startOptions are the flags of start.
type startOptions struct {
	kernel, initrd, rootfs  string
	writableRootfs, termina bool
	params, oem             []string
	disks, extraDisks       []string
	cpus, timeout           uint32
	size                    sizeFlag
	vmType                  string
	shell                   bool
	user                    string
}

func (a *app) startCommand() *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Start a VM; make its disk when it has none",
		Long: "Start the VM called NAME from the installed guest image, prepared for containers,\n" +
			"and make its disk first when it has none. With --kernel, --initrd, --rootfs or a\n" +
			"--vm-type other than termina the VM needs no disk and is not prepared for containers,\n" +
			"unless --termina says so; --termina=false does the same with the installed image.\n\n" +
			"--disk PATH[,OPTION...] adds a disk image. Options are writable, type=raw or\n" +
			"type=qcow2 (default: by the name's end), and mount=/DIR with fstype=TYPE and\n" +
			"data=TEXT to mount it in the guest. Two commas are one that belongs to a path.",
		Example: `  vmc start termina --shell
  vmc start box --kernel vmlinux --rootfs root.img --kernel-param quiet --cpus 2
  vmc start box --termina=false --disk data.img,writable,mount=/mnt/data,fstype=ext4`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.stopped),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("termina") {
				o.termina = o.kernel+o.initrd+o.rootfs == "" && (o.vmType == "" || o.vmType == "termina")
			}
			return a.start(cmd.Context(), args[0], &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.kernel, "kernel", "", "boot this kernel `FILE` (an uncompressed vmlinux or a bzImage)")
	f.StringVar(&o.initrd, "initrd", "", "boot with this initramfs `FILE`")
	f.StringVar(&o.rootfs, "rootfs", "", "use this raw image `FILE` as the root file system")
	f.BoolVar(&o.writableRootfs, "writable-rootfs", false, "let the VM write to the image given by --rootfs")
	f.StringArrayVar(&o.params, "kernel-param", nil, "add a `PARAMETER` to the kernel's command line (may be repeated)")
	f.StringArrayVar(&o.oem, "oem-string", nil, "add an SMBIOS OEM `STRING` (may be repeated)")
	f.StringArrayVar(&o.disks, "disk", nil, "add a disk image: `PATH[,OPTION...]` (may be repeated)")
	f.StringArrayVar(&o.extraDisks, "extra-disk", nil, "add a raw disk image, writable: the same as --disk `PATH`,writable,type=raw")
	f.Uint32Var(&o.cpus, "cpus", 0, "number of CPUs, `N` (default: as configured, else all)")
	f.Uint32Var(&o.timeout, "timeout", 0, "`SECONDS` that the guest has to come up (default 60, emulated 180)")
	f.Var(&o.size, "size", "size of the disk if it has to be made, such as 20G (default: nine tenths of the free space, sparse)")
	f.BoolVar(&o.termina, "termina", true, "prepare the VM for containers, see above")
	f.StringVar(&o.vmType, "vm-type", "", "the `KIND` of VM: termina, bruschetta or baguette")
	f.BoolVar(&o.shell, "shell", false, "open a shell in the VM when it is up")
	f.StringVar(&o.user, "user", "", "`USER` of the shell")
	completeFlag(cmd, "vm-type", words("termina", "bruschetta", "baguette"))
	for _, name := range []string{"cpus", "timeout", "size", "kernel-param", "oem-string", "user"} {
		completeFlag(cmd, name, words())
	}
	return cmd
}

func (a *app) start(ctx context.Context, name string, o *startOptions) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	resp, err := a.startVM(ctx, s, name, o)
	if err != nil {
		return err
	}
	if o.shell {
		return a.shell(ctx, s, name, o.user)
	}
	if a.json {
		return a.printJSON(resp)
	}
	fmt.Fprintf(a.out, "%s is %s: address %s, pid %d, cid %d\n", name, statusWord(resp.Status),
		address(resp.VmInfo.GetIpv4Address()), resp.VmInfo.GetPid(), resp.VmInfo.GetCid())
	return nil
}

// startVM starts a VM, with its disk made when it needs one, and waits for it.
func (a *app) startVM(ctx context.Context, s *session, name string, o *startOptions) (*pb.StartVmResponse, error) {
	req, files, err := a.startRequest(o)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	req.Name, req.OwnerId = name, a.owner
	if req.StartTermina {
		disk, err := a.ensureDisk(ctx, s, name, uint64(o.size))
		if err != nil {
			return nil, err
		}
		req.Disks = append([]*pb.DiskImage{disk}, req.Disks...)
	}
	progress := a.watch(s, name)
	var resp pb.StartVmResponse
	err = s.call(ctx, "StartVm", req, &resp, files...)
	progress.end()
	if err != nil {
		return nil, err
	}
	if !resp.Success {
		return nil, refused("start "+name, resp.FailureReason)
	}
	a.warnOfLoss(name, &resp)
	return &resp, nil
}

// warnOfLoss says what a successful start has to say besides.
func (a *app) warnOfLoss(name string, resp *pb.StartVmResponse) {
	if resp.MountResult == pb.StartVmResponse_PARTIAL_DATA_LOSS {
		fmt.Fprintf(a.err, "vmc: the disk of %s was damaged and an older state of it is in use: the latest changes are lost\n", name)
	}
}

// startRequest is what the flags say, and the files that go with it, which
// are the caller's to close even with an error.
func (a *app) startRequest(o *startOptions) (req *pb.StartVmRequest, files []*os.File, err error) {
	req = &pb.StartVmRequest{
		StartTermina: o.termina, Cpus: o.cpus, Timeout: o.timeout,
		KernelParams: o.params, OemStrings: o.oem, WritableRootfs: o.writableRootfs,
	}
	if o.vmType != "" {
		t, ok := pb.VmInfo_VmType_value[strings.ToUpper(o.vmType)]
		if !ok {
			return nil, nil, withCode(ExitUsage, fmt.Errorf("there is no --vm-type %q: give termina, bruschetta or baguette", o.vmType))
		}
		req.VmType = pb.VmInfo_VmType(t)
	}
	for _, d := range o.extraDisks {
		path, err := filepath.Abs(d)
		if err != nil {
			return nil, nil, err
		}
		req.Disks = append(req.Disks, &pb.DiskImage{Path: path, Writable: true})
	}
	for _, d := range o.disks {
		disk, err := parseDisk(d)
		if err != nil {
			return nil, nil, withCode(ExitUsage, fmt.Errorf("--disk %s: %w", d, err))
		}
		req.Disks = append(req.Disks, disk)
	}
	// What the VM boots goes as descriptors: who can open a file may boot it.
	for _, f := range []struct {
		path  string
		typ   pb.StartVmRequest_FdType
		write bool
	}{
		{o.kernel, pb.StartVmRequest_KERNEL, false},
		{o.initrd, pb.StartVmRequest_INITRD, false},
		{o.rootfs, pb.StartVmRequest_ROOTFS, o.writableRootfs},
	} {
		if f.path == "" {
			continue
		}
		mode := os.O_RDONLY
		if f.write {
			mode = os.O_RDWR
		}
		file, err := os.OpenFile(f.path, mode, 0)
		if err != nil {
			return nil, files, withCode(ExitFailed, fmt.Errorf("the %s: %w", strings.ToLower(f.typ.String()), err))
		}
		files = append(files, file)
		req.Fds = append(req.Fds, f.typ)
	}
	return req, files, nil
}

// ensureDisk finds or makes the VM's disk.
func (a *app) ensureDisk(ctx context.Context, s *session, name string, size uint64) (*pb.DiskImage, error) {
	var list pb.ListVmDisksResponse
	err := s.call(ctx, "ListVmDisks", &pb.ListVmDisksRequest{CryptohomeId: a.owner, VmName: name}, &list)
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
	// A mistake in a name should not go unnoticed.
	hint := suggestion(name, a.withDisk(ctx, s))
	resp, err := a.createDisk(ctx, s, name, size)
	if err != nil {
		return nil, err
	}
	if hint != "" {
		fmt.Fprintf(a.err, "vmc: %s had no disk, a new one was made%s\n", name, hint)
	}
	return &pb.DiskImage{Path: resp.DiskPath, ImageType: pb.DiskImageType_DISK_IMAGE_RAW, Writable: true}, nil
}
