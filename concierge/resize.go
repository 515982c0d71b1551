package concierge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

const (
	// resizeTimeout bounds what a guest may take to move its data out of the
	// way.
	resizeTimeout = 30 * time.Minute
	// resizeLook is how often a guest is asked how far it is.
	resizeLook = 500 * time.Millisecond
)

// ResizeDiskImage changes the size of a VM's disk image. While the VM runs, its
// stateful file system is changed with it: a smaller one first, a larger one
// afterwards, by an operation that goes on when the call has returned. Without
// the VM a raw image can become larger; its guest uses that when it is started
// with start_termina.
func (s *Service) ResizeDiskImage(ctx context.Context, sub policy.Subject, req *pb.ResizeDiskImageRequest) (*pb.ResizeDiskImageResponse, error) {
	if err := policy.CheckName(req.VmName); err != nil {
		return nil, err
	}
	size := int64(min(req.DiskSize, 1<<62)) / diskBlock * diskBlock
	if size < minDisk {
		return nil, fmt.Errorf("a disk of %d bytes is smaller than %d", req.DiskSize, minDisk)
	}
	path, exists, err := s.diskPath(sub.Owner, req.VmName)
	if err != nil {
		return nil, err
	}
	if !exists {
		return &pb.ResizeDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST,
			FailureReason: fmt.Sprintf("VM %q has no disk image", req.VmName)}, nil
	}
	release, err := s.pledgeGrowth(sub.Owner.UID, path, size)
	if errors.Is(err, ErrQuota) {
		return &pb.ResizeDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE, FailureReason: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	v, m, err := s.up(sub, req.VmName)
	if err == nil && !v.isSuspended() {
		return s.beginResize(v, m, path, size, release)
	}
	defer release()
	switch {
	case errors.Is(err, ErrNotFound):
		if err = s.checkUnused(path, sub.Owner.UID); err == nil {
			err = growImage(path, size)
		}
	case err != nil:
		return nil, err
	default:
		return nil, fmt.Errorf("VM %q is suspended; resume it before its disk is resized", req.VmName)
	}
	if err != nil {
		return nil, fmt.Errorf("resize the disk of VM %q: %w", req.VmName, err)
	}
	return &pb.ResizeDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_RESIZED}, nil
}

// pledgeGrowth reserves what an image would become larger by. One that becomes
// smaller needs nobody's leave.
func (s *Service) pledgeGrowth(uid uint32, path string, size int64) (release func(), err error) {
	if i, ok := imageAt(path); ok && uint64(size) <= i.virtual {
		return func() {}, nil
	}
	_, release, err = s.pledgeDisk(uid, path, uint64(size), false)
	return release, err
}

// growImage makes an image that nobody uses larger.
func growImage(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !fi.Mode().IsRegular() || isQcow2Name(path):
		return errors.New("only raw images can be resized while the VM does not run: start it")
	case size < fi.Size():
		return errors.New("it can become smaller only while the VM runs, whose guest makes room: start it with start_termina")
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	markChosen(path)
	return f.Sync()
}

// imageSize is how large the guest sees a disk, in bytes. The file of a qcow2
// image is as large as what was written.
func imageSize(path string, spec *vmm.Spec, disk int) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if disk < len(spec.Disks) && spec.Disks[disk].Format == vmm.FormatQcow2 {
		return qcow2Size(f)
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// markChosen remembers that the owner has chosen the size. Some file systems
// have no such attributes; then nobody knows.
func markChosen(path string) { _ = unix.Setxattr(path, sizeXattr, []byte("1"), 0) }

// beginResize takes over release, which ends what was reserved for the disk.
func (s *Service) beginResize(v *vm, m *vmm.Machine, path string, size int64, release func()) (_ *pb.ResizeDiskImageResponse, err error) {
	defer func() {
		if err != nil {
			release()
		}
	}()
	v.mu.Lock()
	disk := v.disk
	v.mu.Unlock()
	if !disk.Has {
		return nil, fmt.Errorf("VM %q runs without its disk image, or may not write to it: stop it first", v.key.name)
	}
	from, err := imageSize(path, m.Spec, disk.Index)
	if err != nil {
		return nil, fmt.Errorf("find out the size of the disk of VM %q: %w", v.key.name, err)
	}
	if size < from && !disk.Stateful {
		return nil, fmt.Errorf("the disk of VM %q cannot become smaller: only a stateful file system (start_termina) makes room for that", v.key.name)
	}
	ctx, cancel := context.WithCancelCause(s.quit)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		cancel(nil)
		return nil, errors.New("the service is shutting down")
	}
	busy := v.resizing
	v.resizing = true
	if !busy {
		s.running.Add(1)
	}
	s.mu.Unlock()
	if busy {
		cancel(nil)
		return nil, fmt.Errorf("the disk of VM %q is being resized already", v.key.name)
	}
	op := s.beginOperation(opResize, v.owner, v.key.name, func() { cancel(errCancelled) })
	s.emit(v, "DiskImageProgress", s.diskStatus(op))
	go func() {
		defer s.running.Done()
		defer release()
		defer cancel(nil)
		ctx, stop := context.WithTimeout(ctx, resizeTimeout)
		defer stop()
		err := s.resize(ctx, v, m, op, disk, path, from, size)
		s.mu.Lock()
		v.resizing = false
		s.mu.Unlock()
		if err != nil && errors.Is(context.Cause(ctx), errCancelled) {
			err = errCancelled
		}
		s.finish(op, err)
		s.emit(v, "DiskImageProgress", s.diskStatus(op))
	}()
	return &pb.ResizeDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS, CommandUuid: op.id}, nil
}

var errCancelled = errors.New("the operation was cancelled")

// resize keeps the disk at least as large as the file system at every moment.
func (s *Service) resize(ctx context.Context, v *vm, m *vmm.Machine, op *operation, disk ownDisk, path string, from, to int64) error {
	if to > from {
		if err := m.ResizeDisk(ctx, disk.Index, to); err != nil {
			return err
		}
	}
	// Also where the disk has its size already: an earlier attempt may have
	// ended between the two.
	if disk.Stateful {
		if err := s.resizeFilesystem(ctx, v, m, op, uint64(to)); err != nil {
			return err
		}
	}
	if to < from {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := m.ResizeDisk(ctx, disk.Index, to); err != nil {
			return err
		}
	}
	markChosen(path)
	return nil
}

// resizeFilesystem has the guest do it and waits until it has.
func (s *Service) resizeFilesystem(ctx context.Context, v *vm, m *vmm.Machine, op *operation, to uint64) error {
	err := within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.ResizeFilesystem(ctx, to) })
	if err != nil {
		return err
	}
	tick := time.NewTicker(resizeLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.Done():
			return errors.New("the VM ended before its file system was resized")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var running bool
		var size uint64
		err := within(ctx, agentTimeout, func(ctx context.Context) (err error) {
			running, size, err = v.agent.ResizeStatus(ctx)
			return err
		})
		switch {
		case err != nil && v.machineEnded():
			return errors.New("the VM ended before its file system was resized")
		case err != nil:
			return err
		case !running && size > to:
			return fmt.Errorf("the guest's file system has still %d bytes: its data does not fit %d", size, to)
		case !running && size < to && size < to-to/100:
			return fmt.Errorf("the guest's file system has %d bytes and not %d; the guest's log tells why", size, to)
		case !running:
			return nil
		}
		if s.progress(op, "resizing the file system", 50) {
			s.emit(v, "DiskImageProgress", s.diskStatus(op))
		}
	}
}

// diskStatus is an operation on a disk as the contract has it.
func (s *Service) diskStatus(op *operation) *pb.DiskImageStatusResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &pb.DiskImageStatusResponse{CommandUuid: op.id, FailureReason: op.reason, Progress: op.progress}
	switch op.status {
	case opRunning:
		r.Status = pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS
	case opDone:
		r.Status = pb.DiskImageStatus_DISK_STATUS_RESIZED
	default:
		r.Status = pb.DiskImageStatus_DISK_STATUS_FAILED
	}
	return r
}

// diskOperation finds an operation on a disk that the caller may see.
func (s *Service) diskOperation(sub policy.Subject, id string) (*operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.operations[id]
	if op == nil || !maySee(sub, op.owner.UID) || op.kind != opResize {
		return nil, fmt.Errorf("%w: you have no operation %q on a disk image; those that ended are forgotten after %v", ErrNotFound, id, keepOperations)
	}
	return op, nil
}

// DiskImageStatus tells how far an operation is, also for a while after it has
// ended.
func (s *Service) DiskImageStatus(_ context.Context, sub policy.Subject, req *pb.DiskImageStatusRequest) (*pb.DiskImageStatusResponse, error) {
	op, err := s.diskOperation(sub, req.CommandUuid)
	if err != nil {
		return nil, err
	}
	return s.diskStatus(op), nil
}

// CancelDiskImageOperation gives an operation up. A file system that is being
// moved out of the way goes on in the guest; the disk then keeps its size.
func (s *Service) CancelDiskImageOperation(_ context.Context, sub policy.Subject, req *pb.CancelDiskImageRequest) (*pb.SuccessFailureResponse, error) {
	op, err := s.diskOperation(sub, req.CommandUuid)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	running := op.status == opRunning
	s.mu.Unlock()
	if !running {
		return nil, fmt.Errorf("operation %s has ended already", op.id)
	}
	op.cancel()
	return &pb.SuccessFailureResponse{Success: true}, nil
}

// guestSizes asks a running VM for the sizes that only its guest knows.
func (s *Service) guestSizes(ctx context.Context, sub policy.Subject, d *pb.VmDiskInfo) {
	v, err := s.awake(sub, d.Name)
	if err != nil {
		return
	}
	v.mu.Lock()
	stateful := v.disk.Stateful
	v.mu.Unlock()
	if !stateful {
		return
	}
	ask := func(f func(guestlink.StorageManager, context.Context) (uint64, error)) uint64 {
		var n uint64
		err := within(ctx, sizesTimeout, func(ctx context.Context) (err error) {
			n, err = f(v.agent, ctx)
			return err
		})
		if err != nil {
			v.log.Warn("the guest does not tell the sizes of its disk", "err", err)
		}
		return n
	}
	d.MinSize = ask(guestlink.StorageManager.MinimumSize)
	d.AvailableSpace = ask(guestlink.StorageManager.AvailableSpace)
}

// sizesTimeout bounds what a slow guest may cost a listing, for each of two
// questions: callers wait 25 s by default.
const sizesTimeout = 10 * time.Second

// allGuestSizes is guestSizes for several disks, side by side.
func (s *Service) allGuestSizes(ctx context.Context, sub policy.Subject, disks []*pb.VmDiskInfo) {
	var wg sync.WaitGroup
	free := make(chan struct{}, fanOut)
	for _, d := range disks {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			s.guestSizes(ctx, sub, d)
		})
	}
	wg.Wait()
}
