package maitred

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// hostReserve is what the VM leaves of the host's free space.
	hostReserve = 1 << 30
	// balloonName is the balloon's file on the stateful disk.
	balloonName = ".auberge-balloon"
)

func (s *Server) balloon() core.Balloon {
	return core.Balloon{Path: filepath.Join(s.statefulDir, balloonName)}
}

// UpdateStorageBalloon keeps the VM from filling a host whose disk has less
// room than the sparse image promises: the stateful file system may grow into
// what the host has free beyond a reserve, and into nothing when the host's
// state is critical.
func (s *Server) UpdateStorageBalloon(ctx context.Context, req *pb.UpdateStorageBalloonRequest) (*pb.UpdateStorageBalloonResponse, error) {
	free := req.FreeSpaceBytes - hostReserve
	switch req.State {
	case pb.StatefulDiskSpaceState_DISK_NORMAL, pb.StatefulDiskSpaceState_DISK_LOW:
	case pb.StatefulDiskSpaceState_DISK_CRITICAL:
		free = 0
	default:
		return nil, invalid("UpdateStorageBalloon: %v is no state of the host's disk", req.State)
	}
	if req.FreeSpaceBytes < 0 {
		return nil, invalid("UpdateStorageBalloon: the host cannot have %d bytes free", req.FreeSpaceBytes)
	}
	s.storage.Lock()
	defer s.storage.Unlock()
	if err := s.wantStateful("UpdateStorageBalloon"); err != nil {
		return nil, err
	}
	if s.resize.underWay() {
		// It needs all the room there is, and the host will tell again.
		return &pb.UpdateStorageBalloonResponse{}, nil
	}
	size, err := s.balloon().Adjust(max(free, 0))
	switch {
	case errors.Is(err, core.ErrBalloonFull):
		s.log.Warn("the storage balloon is smaller than it should be", "err", err)
		return &pb.UpdateStorageBalloonResponse{Result: pb.UpdateStorageBalloonResult_BALLOON_INFLATE_FAILED}, nil
	case err != nil:
		return nil, failure(ctx, err)
	}
	s.log.Debug("storage balloon adjusted", "size", size, "state", req.State)
	return &pb.UpdateStorageBalloonResponse{}, nil
}

// wantStateful refuses a call that is about the stateful disk when there is
// none.
func (s *Server) wantStateful(call string) error {
	mounted, _, err := core.MountedFrom(s.statefulDir, "")
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if !mounted {
		return status.Errorf(codes.FailedPrecondition, "%s: no stateful disk is mounted at %s", call, s.statefulDir)
	}
	return nil
}
