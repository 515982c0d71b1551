package tremplin

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"github.com/auberge-vm/auberge/guest/tremplin/rootfs"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// containerUID is a container's user.
const containerUID = 1000

// A user of a container, as useradd(8) has names.
var userForm = regexp.MustCompile(`^[a-z][-a-z0-9_]{0,31}$|^[a-z][-a-z0-9_]{0,30}\$$`)

// Groups of the container's user that there may be, and accounts that go with
// every container of ChromeOS' contract.
var (
	userGroups = []string{"audio", "cdrom", "dialout", "floppy", "kvm", "libvirt", "plugdev", "sudo", "users", "video"}
	fixedUsers = []rootfs.Account{
		{Name: "chronos-access", ID: 1001}, {Name: "android-root", ID: 655360}, {Name: "android-everybody", ID: 665357},
	}
	// Of them, the user is a member.
	sharedGroups = []string{"chronos-access", "android-everybody"}
)

// SetUpUser sees to it that a container has its user.
func (s *Server) SetUpUser(ctx context.Context, req *pb.SetUpUserRequest) (*pb.SetUpUserResponse, error) {
	name, there, err := s.setUpUser(ctx, req)
	resp := &pb.SetUpUserResponse{Status: pb.SetUpUserResponse_SUCCESS, Username: name}
	switch {
	case err != nil:
		s.log.Error("user not set up", "container", req.ContainerName, "err", err)
		resp.Status, resp.FailureReason = pb.SetUpUserResponse_FAILED, clip(err.Error())
	case there:
		resp.Status = pb.SetUpUserResponse_EXISTS
	}
	return resp, nil
}

func (s *Server) setUpUser(ctx context.Context, req *pb.SetUpUserRequest) (name string, there bool, err error) {
	if !userForm.MatchString(req.ContainerUsername) {
		return "", false, fmt.Errorf("%.80q cannot be a user's name: want a small letter, then small letters, digits, - and _, 32 in all", req.ContainerUsername)
	}
	i, _, err := s.find(ctx, req.ContainerName)
	if err != nil {
		return "", false, err
	}
	_, finish, err := s.jobs.take(i.Name, jobSetUp)
	if err != nil {
		return "", false, err
	}
	defer finish()
	root, err := s.files(i)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	name, there, err = root.SetUpUser(ctx, rootfs.Users{
		Main: rootfs.Account{Name: req.ContainerUsername, ID: containerUID}, Groups: userGroups, Fixed: fixedUsers, Shared: sharedGroups,
	})
	if err != nil {
		return "", false, fmt.Errorf("the container %s: %w", i.Name, err)
	}
	if i.Config[setUpKey] == "no" {
		if err := s.incus.Change(ctx, i.Name, map[string]string{setUpKey: "yes"}, nil); err != nil {
			return name, there, err
		}
	}
	s.log.Info("user set up", "container", i.Name, "user", name)
	return name, there, nil
}

// GetContainerUsername returns the name of a running container's user.
func (s *Server) GetContainerUsername(ctx context.Context, req *pb.GetContainerUsernameRequest) (*pb.GetContainerUsernameResponse, error) {
	resp := &pb.GetContainerUsernameResponse{}
	fail := func(state pb.GetContainerUsernameResponse_Status, err error) (*pb.GetContainerUsernameResponse, error) {
		resp.Status, resp.FailureReason = state, clip(err.Error())
		return resp, nil
	}
	i, missing, err := s.find(ctx, req.ContainerName)
	switch {
	case missing:
		return fail(pb.GetContainerUsernameResponse_CONTAINER_NOT_FOUND, err)
	case err != nil:
		return fail(pb.GetContainerUsernameResponse_FAILED, err)
	case i.Status == incus.Stopped:
		return fail(pb.GetContainerUsernameResponse_CONTAINER_NOT_RUNNING, fmt.Errorf("the container %s does not run", i.Name))
	}
	root, err := s.files(i)
	if err != nil {
		return fail(pb.GetContainerUsernameResponse_FAILED, err)
	}
	defer root.Close()
	name, home, err := root.FindUser(containerUID)
	switch {
	case errors.Is(err, rootfs.ErrNoUser):
		return fail(pb.GetContainerUsernameResponse_USER_NOT_FOUND, err)
	case err != nil:
		return fail(pb.GetContainerUsernameResponse_FAILED, err)
	}
	resp.Status, resp.Username, resp.Homedir = pb.GetContainerUsernameResponse_SUCCESS, name, home
	return resp, nil
}
