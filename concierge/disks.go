package concierge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm/crash"
)

// A disk store is a directory per owner: <state>/disks/<uid>, with a
// directory "@<label>" in it for each label. Images are named as on ChromeOS,
// the VM's name in URL-safe base64 and .img or .qcow2.

const (
	diskBlock   = 4096    // sizes are rounded down to it
	minAutoDisk = 1 << 30 // smallest disk that is sized by the free space
	minDisk     = 1 << 20
	rawSuffix   = ".img"
	qcow2Suffix = ".qcow2"
	// sizeXattr marks a disk whose size its owner has chosen.
	sizeXattr = "user.crostini.user_chosen_size"
)

func (s *Service) disksDir() string { return filepath.Join(s.cfg.StateDir, "disks") }

func (s *Service) storeDir(o policy.Owner) string {
	return filepath.Join(s.disksDir(), ownerDir(o.UID, o.Label))
}

// diskPath returns where the image of a VM is, and whether it exists.
func (s *Service) diskPath(o policy.Owner, name string) (path string, exists bool, err error) {
	base := filepath.Join(s.storeDir(o), fileName(name))
	found := ""
	for _, suffix := range []string{rawSuffix, qcow2Suffix} {
		_, err := os.Lstat(base + suffix)
		switch {
		case err == nil && found != "":
			return "", false, fmt.Errorf("VM %q has two disk images, %s and %s: remove one", name, found, base+suffix)
		case err == nil:
			found = base + suffix
		case !errors.Is(err, fs.ErrNotExist):
			return "", false, err
		}
	}
	if found != "" {
		return found, true, nil
	}
	return base + rawSuffix, false, nil
}

// CreateDiskImage makes a raw disk image for a VM, sparse unless the request
// says otherwise.
func (s *Service) CreateDiskImage(_ context.Context, sub policy.Subject, req *pb.CreateDiskImageRequest, files []*os.File) (*pb.CreateDiskImageResponse, error) {
	if err := checkCreate(req, len(files)); err != nil {
		return nil, err
	}
	path, exists, err := s.diskPath(sub.Owner, req.VmName)
	if err != nil {
		return nil, err
	}
	found := &pb.CreateDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_EXISTS, DiskPath: path}
	if exists {
		return found, nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the disk store: %w", err)
	}
	crash.At(crash.StoreMade)
	size, err := diskSize(dir, req.DiskSize)
	if err != nil {
		return nil, err
	}
	granted, release, err := s.pledgeDisk(sub.Owner.UID, path, uint64(size), req.DiskSize == 0)
	if errors.Is(err, ErrQuota) {
		return &pb.CreateDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE, FailureReason: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	defer release()
	size = int64(granted)
	err = makeDisk(dir, filepath.Base(path), size, req)
	switch {
	case errors.Is(err, fs.ErrExist):
		return found, nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EFBIG), errors.Is(err, unix.EDQUOT):
		return &pb.CreateDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE,
			FailureReason: fmt.Sprintf("create a disk of %d bytes for VM %q: %v", size, req.VmName, err)}, nil
	case err != nil:
		return nil, fmt.Errorf("create a disk of %d bytes for VM %q: %w", size, req.VmName, err)
	}
	return &pb.CreateDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_CREATED, DiskPath: path}, nil
}

func checkCreate(req *pb.CreateDiskImageRequest, files int) error {
	if err := policy.CheckName(req.VmName); err != nil {
		return err
	}
	switch req.ImageType {
	case pb.DiskImageType_DISK_IMAGE_RAW, pb.DiskImageType_DISK_IMAGE_AUTO:
	default:
		return fmt.Errorf("images of type %v cannot be created, only raw ones", req.ImageType)
	}
	if req.StorageLocation != pb.StorageLocation_STORAGE_CRYPTOHOME_ROOT {
		return fmt.Errorf("storage location %v is not supported, only STORAGE_CRYPTOHOME_ROOT", req.StorageLocation)
	}
	if req.FilesystemType != pb.FilesystemType_UNSPECIFIED || len(req.MkfsOpts) > 0 || len(req.Tune2FsOpts) > 0 {
		return errors.New("making a file system on the image is not supported: the guest formats its disk itself")
	}
	if req.CopyBaguetteImage || req.StorageBallooning || len(req.Params) > 0 || req.SourceSize > 0 || files > 0 {
		return errors.New("copying a source image and storage ballooning are not supported")
	}
	if req.DiskSize > 0 && req.DiskSize < minDisk {
		return fmt.Errorf("a disk of %d bytes is smaller than %d", req.DiskSize, minDisk)
	}
	return nil
}

// diskSize is the requested size, or nine tenths of the free space, in whole
// blocks.
func diskSize(dir string, asked uint64) (int64, error) {
	size := asked
	if size == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, fmt.Errorf("find out the free space: %w", err)
		}
		size = max(st.Bavail*uint64(st.Bsize)/10*9, minAutoDisk)
	}
	size = size / diskBlock * diskBlock
	if size > 1<<62 {
		return 0, fmt.Errorf("a disk of %d bytes is too large", asked)
	}
	return int64(size), nil
}

// makeDisk builds the image without a name and links it into place when it is
// whole, so that a crash leaves nothing.
func makeDisk(dir, name string, size int64, req *pb.CreateDiskImageRequest) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if req.AllocationType == pb.DiskImageAllocationType_DISK_ALLOCATION_TYPE_PREALLOCATE {
		if err := unix.Fallocate(fd, 0, 0, size); err != nil {
			return err
		}
	}
	if req.DiskSize > 0 {
		// Some file systems have no such attributes; then nobody knows.
		_ = unix.Fsetxattr(fd, sizeXattr, []byte("1"), 0)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	crash.At(crash.DiskMade)
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return err
	}
	crash.At(crash.DiskLinked)
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// DestroyDiskImage stops the VM and removes its disk image.
func (s *Service) DestroyDiskImage(ctx context.Context, sub policy.Subject, req *pb.DestroyDiskImageRequest) (*pb.DestroyDiskImageResponse, error) {
	if req.StorageLocation != pb.StorageLocation_STORAGE_CRYPTOHOME_ROOT {
		return nil, fmt.Errorf("storage location %v is not supported, only STORAGE_CRYPTOHOME_ROOT", req.StorageLocation)
	}
	v, err := s.lookup(sub, req.VmName)
	switch {
	case err == nil:
		if err := stopAndWait(ctx, v, pb.VmStopReason_DESTROY_DISK_IMAGE_REQUESTED); err != nil {
			return nil, err
		}
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	path, exists, err := s.diskPath(sub.Owner, req.VmName)
	if err != nil {
		return nil, err
	}
	if exists {
		err = s.checkUnused(path, sub.Owner.UID)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the disk image of VM %q: %w", req.VmName, err)
		}
	}
	// A VM without a disk has a log too, and no other call takes it away.
	s.removeLog(ctx, sub, req.VmName)
	if exists {
		err = os.Remove(path)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		// Whatever containers it had are gone.
		if kerr := s.removeKeys(ctx, sub.Owner, req.VmName); kerr != nil {
			return nil, kerr
		}
	}
	if !exists || errors.Is(err, fs.ErrNotExist) {
		return &pb.DestroyDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST,
			FailureReason: fmt.Sprintf("VM %q has no disk image", req.VmName)}, nil
	}
	if err == nil {
		crash.At(crash.DiskRemoved)
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("remove the disk image of VM %q: %w", req.VmName, err)
	}
	return &pb.DestroyDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_DESTROYED}, nil
}

// ListVmDisks lists an owner's disk images. A request that uses what the seed
// does not know is answered with HEAD's message, any other with the seed's.
func (s *Service) ListVmDisks(ctx context.Context, sub policy.Subject, req *pb.ListVmDisksRequest) (proto.Message, error) {
	disks, total, err := s.listDisks(sub.Owner, req)
	if req.AllLocations || req.VmName != "" {
		if err != nil {
			return &pb.ListVmDisksResponse{FailureReason: err.Error()}, nil
		}
		s.allGuestSizes(ctx, sub, disks)
		return &pb.ListVmDisksResponse{Success: true, Images: disks, TotalSize: total}, nil
	}
	if err != nil {
		return &pb.ListVmDisksSeedResponse{FailureReason: err.Error()}, nil
	}
	resp := &pb.ListVmDisksSeedResponse{Success: true, TotalSize: total}
	for _, d := range disks {
		resp.Images = append(resp.Images, d.Name)
	}
	return resp, nil
}

func (s *Service) listDisks(o policy.Owner, req *pb.ListVmDisksRequest) (disks []*pb.VmDiskInfo, total uint64, err error) {
	if req.VmName != "" {
		if err := policy.CheckName(req.VmName); err != nil {
			return nil, 0, err
		}
	}
	if req.StorageLocation != pb.StorageLocation_STORAGE_CRYPTOHOME_ROOT && !req.AllLocations {
		return nil, 0, nil // nothing is ever stored there
	}
	entries, err := os.ReadDir(s.storeDir(o))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("list disk images: %w", err)
	}
	for _, e := range entries {
		d, used := s.diskInfo(o, e.Name())
		if d == nil || (req.VmName != "" && d.Name != req.VmName) {
			continue
		}
		disks = append(disks, d)
		total += used
	}
	slices.SortFunc(disks, func(a, b *pb.VmDiskInfo) int { return strings.Compare(a.Name, b.Name) })
	return disks, total, nil
}

// diskInfo describes one entry of a store, or nothing when it is no image.
// used is what it takes on the disk, in bytes.
func (s *Service) diskInfo(o policy.Owner, file string) (d *pb.VmDiskInfo, used uint64) {
	typ := pb.DiskImageType_DISK_IMAGE_RAW
	base, ok := strings.CutSuffix(file, rawSuffix)
	if !ok {
		if base, ok = strings.CutSuffix(file, qcow2Suffix); !ok {
			return nil, 0
		}
		typ = pb.DiskImageType_DISK_IMAGE_QCOW2
	}
	name, ok := vmName(base)
	if !ok {
		return nil, 0
	}
	path := filepath.Join(s.storeDir(o), file)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, 0
	}
	var chosen [1]byte
	n, err := unix.Getxattr(path, sizeXattr, chosen[:])
	return &pb.VmDiskInfo{
		Name: name, StorageLocation: pb.StorageLocation_STORAGE_CRYPTOHOME_ROOT, Size: uint64(st.Size),
		ImageType: typ, Path: path, UserChosenSize: err == nil && n == 1 && chosen[0] == '1',
	}, uint64(st.Blocks) * 512
}

// isQcow2Name says whether a path names a qcow2 image of a store.
func isQcow2Name(path string) bool { return strings.HasSuffix(path, qcow2Suffix) }
