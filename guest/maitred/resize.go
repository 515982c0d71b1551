package maitred

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The host enlarges a disk just before it asks for a larger file system, and
// the guest sees that a moment later: so often and, doubled each time, so long
// it is waited for, as on ChromeOS. A resize for which there is no room at once
// is tried as often.
const (
	growTries    = 5
	growPauseMin = 100 * time.Millisecond
)

// A resize is the one change of the stateful file system's size that may be
// under way.
type resize struct {
	mu      sync.Mutex
	running bool
	from    uint64
	to      uint64
	done    chan struct{}   // closed when the last one has ended
	ctx     context.Context // done when the VM ends
	cancel  context.CancelFunc
}

func newResize() *resize {
	r := &resize{done: make(chan struct{})}
	close(r.done)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// stop ends a resize that is under way and waits for it, for as long as grace:
// one that is stuck in the kernel must not hold up the VM's end.
func (r *resize) stop(grace time.Duration) {
	r.mu.Lock()
	r.cancel()
	done := r.done
	r.mu.Unlock()
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

func (r *resize) underWay() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running
}

// ResizeFilesystem begins to change the stateful file system's size, and
// GetResizeStatus tells how it goes on. One that is under way goes first.
func (s *Server) ResizeFilesystem(ctx context.Context, req *pb.ResizeFilesystemRequest) (*pb.ResizeFilesystemResponse, error) {
	if req.Size == 0 || req.Size > 1<<62 {
		return nil, invalid("ResizeFilesystem: a file system cannot have %d bytes", req.Size)
	}
	fs, err := s.statefulBtrfs("ResizeFilesystem")
	if err != nil {
		return nil, err
	}
	from, err := fs.Size()
	if err != nil {
		return nil, failure(ctx, err)
	}
	r := s.resize
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ctx.Err() != nil:
		return &pb.ResizeFilesystemResponse{Status: pb.ResizeFilesystemResponse_FAILED}, nil
	case r.running:
		return &pb.ResizeFilesystemResponse{Status: pb.ResizeFilesystemResponse_ALREADY_IN_PROGRESS}, nil
	}
	done := make(chan struct{})
	r.running, r.from, r.to, r.done = true, from, req.Size, done
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("resizing panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			r.mu.Lock()
			r.running = false
			r.mu.Unlock()
		}()
		if err := s.resizeTo(r.ctx, fs, req.Size); err != nil {
			s.log.Error("the stateful file system was not resized", "from", from, "to", req.Size, "err", err)
			return
		}
		s.log.Info("the stateful file system was resized", "from", from, "to", req.Size)
	}()
	return &pb.ResizeFilesystemResponse{Status: pb.ResizeFilesystemResponse_STARTED}, nil
}

func (s *Server) resizeTo(ctx context.Context, fs core.Btrfs, size uint64) error {
	if err := s.awaitDevice(ctx, fs, size); err != nil {
		return err
	}
	// The host tells what may be free once it knows the new size.
	if err := s.balloon().Remove(); err != nil {
		return err
	}
	return s.changeSize(ctx, fs, size)
}

// changeSize tries until it works: what was freed just now stays set aside
// for data until the file system has cleaned up, and meanwhile there may be no
// room to move what lies beyond the new end.
func (s *Server) changeSize(ctx context.Context, fs core.Btrfs, size uint64) error {
	for try, pause := 0, growPauseMin; ; try, pause = try+1, 2*pause {
		err := fs.Resize(ctx, s.table, size)
		if !errors.Is(err, unix.ENOSPC) || ctx.Err() != nil || try == growTries {
			return err
		}
		if releaseErr := fs.ReleaseEmpty(ctx, s.table); releaseErr != nil {
			s.log.Info("the stateful file system keeps empty chunks for now", "err", releaseErr)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitDevice waits until the device is large enough.
func (s *Server) awaitDevice(ctx context.Context, fs core.Btrfs, size uint64) error {
	for try, pause := 0, growPauseMin; ; try, pause = try+1, 2*pause {
		have, err := fs.DeviceSize()
		if err != nil || have >= size {
			return err
		}
		if try == growTries {
			return fmt.Errorf("the disk has %d bytes and is not made larger", have)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// GetResizeStatus tells the stateful file system's size, the old one while it
// is being changed.
func (s *Server) GetResizeStatus(ctx context.Context, _ *pb.EmptyMessage) (*pb.GetResizeStatusResponse, error) {
	fs, err := s.statefulBtrfs("GetResizeStatus")
	if err != nil {
		return nil, err
	}
	size, err := fs.Size()
	if err != nil {
		return nil, failure(ctx, err)
	}
	r := s.resize
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return &pb.GetResizeStatusResponse{ResizeInProgress: true, CurrentSize: r.from, TargetSize: r.to}, nil
	}
	return &pb.GetResizeStatusResponse{CurrentSize: size}, nil
}

// GetResizeBounds tells how small the stateful file system can be made.
func (s *Server) GetResizeBounds(ctx context.Context, _ *pb.EmptyMessage) (*pb.GetResizeBoundsResponse, error) {
	fs, err := s.statefulBtrfs("GetResizeBounds")
	if err != nil {
		return nil, err
	}
	if s.resize.underWay() {
		return nil, status.Error(codes.FailedPrecondition, "GetResizeBounds: the stateful file system is being resized")
	}
	least, err := fs.MinSize(ctx, s.table)
	if err != nil {
		return nil, failure(ctx, err)
	}
	return &pb.GetResizeBoundsResponse{MinimumSize: least}, nil
}

// GetAvailableSpace tells what can still be written to the stateful disk.
func (s *Server) GetAvailableSpace(ctx context.Context, _ *pb.EmptyMessage) (*pb.GetAvailableSpaceResponse, error) {
	if err := s.wantStateful("GetAvailableSpace"); err != nil {
		return nil, err
	}
	free, err := core.FreeBytes(s.statefulDir)
	if err != nil {
		return nil, failure(ctx, err)
	}
	return &pb.GetAvailableSpaceResponse{AvailableSpace: uint64(max(free, 0))}, nil
}

// statefulBtrfs is the stateful file system, which must be mounted.
func (s *Server) statefulBtrfs(call string) (core.Btrfs, error) {
	if err := s.wantStateful(call); err != nil {
		return core.Btrfs{}, err
	}
	return core.Btrfs{Target: s.statefulDir}, nil
}
