package maitred

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The host enlarges a disk just before it asks for a larger file system, and
// the guest sees that a moment later: so often and, doubled each time, so long
// it is waited for, as on ChromeOS.
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
	done    sync.WaitGroup
	ctx     context.Context // done when the VM ends
	cancel  context.CancelFunc
}

func newResize() *resize {
	ctx, cancel := context.WithCancel(context.Background())
	return &resize{ctx: ctx, cancel: cancel}
}

// stop ends a resize that is under way and waits for it.
func (r *resize) stop() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.done.Wait()
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
	r.running, r.from, r.to = true, from, req.Size
	r.done.Go(func() {
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
	})
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
	if err := fs.Resize(ctx, s.table, size); err == nil || ctx.Err() != nil {
		return err
	}
	// What was freed just now may still be set aside for data, and then there
	// is no room to move what lies beyond the new end.
	if err := fs.ReleaseEmpty(ctx, s.table); err != nil {
		return err
	}
	return fs.Resize(ctx, s.table, size)
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
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
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
