package maitred

import (
	"context"
	"errors"
	"regexp"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// accountWait bounds a change of users.
const accountWait = 15 * time.Second

// tokenPath is where garcon looks for its token.
const tokenPath = "/dev/.container_token"

// A token is a UUID in its usual form of 36 bytes.
var tokenForm = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// ConfigureContainerGuest leaves the token by which cicerone knows garcon,
// readable to the user as whom garcon runs. The VM's user has a name already,
// so the one in the request stays a wish.
func (s *Server) ConfigureContainerGuest(ctx context.Context, req *pb.ConfigureContainerGuestRequest) (*pb.EmptyMessage, error) {
	if !tokenForm.MatchString(req.ContainerToken) {
		return nil, invalid("ConfigureContainerGuest: the container_token is no UUID of 36 bytes, it has %d", len(req.ContainerToken))
	}
	s.account.Lock()
	defer s.account.Unlock()
	if err := renameio.WriteFile(s.root+tokenPath, []byte(req.ContainerToken), 0o644, renameio.IgnoreUmask()); err != nil {
		return nil, failure(ctx, err)
	}
	s.log.Info("the container's token is there")
	return &pb.EmptyMessage{}, nil
}

// SetTimezone makes a zone of the VM's own database its local time.
func (s *Server) SetTimezone(ctx context.Context, req *pb.SetTimezoneRequest) (*pb.EmptyMessage, error) {
	s.account.Lock()
	defer s.account.Unlock()
	err := core.SetTimezone(s.root, req.TimezoneName, req.UseBindMount)
	switch {
	case errors.Is(err, core.ErrZoneName):
		return nil, invalid("SetTimezone: %v", err)
	case errors.Is(err, core.ErrNoZone):
		return nil, status.Errorf(codes.NotFound, "SetTimezone: %v", err)
	case err != nil:
		return nil, failure(ctx, err)
	}
	s.log.Info("time zone set", "zone", req.TimezoneName)
	return &pb.EmptyMessage{}, nil
}

// SetUpUser makes a user, or finds the one who has the uid already.
func (s *Server) SetUpUser(ctx context.Context, req *pb.SetUpUserRequest) (*pb.SetUpUserResponse, error) {
	u := core.UserSpec{Name: req.Username, UID: core.DefaultUID, Groups: req.GroupNames}
	if req.Uid != nil {
		u.UID = *req.Uid
	}
	// Another program that changes accounts is waited for, but not for ever.
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	s.account.Lock()
	defer s.account.Unlock()
	name, err := core.SetUpUser(ctx, s.root, u)
	if err != nil {
		s.log.Error("a user was not set up", "err", err)
		return &pb.SetUpUserResponse{FailureReason: err.Error(), Username: name}, nil
	}
	s.log.Info("user set up", "user", name, "uid", u.UID)
	return &pb.SetUpUserResponse{Success: true, Username: name}, nil
}

// PrepareToSuspend writes everything to the disks.
func (s *Server) PrepareToSuspend(ctx context.Context, _ *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
		return nil, failure(ctx, ctx.Err())
	}
	done := make(chan struct{})
	// sync(2) cannot be interrupted, and a disk of the host's that hangs may
	// hold it for ever; only this one goroutine waits with it then.
	go func() {
		unix.Sync()
		<-s.syncing
		close(done)
	}()
	select {
	case <-done:
		return &pb.EmptyMessage{}, nil
	case <-ctx.Done():
		return nil, failure(ctx, ctx.Err())
	}
}
