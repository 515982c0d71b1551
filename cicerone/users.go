package cicerone

import (
	"context"
	"fmt"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// GetLxdContainerUsername returns the user with uid 1000.
func (s *Service) GetLxdContainerUsername(ctx context.Context, sub policy.Subject, req *pb.GetLxdContainerUsernameRequest) (*pb.GetLxdContainerUsernameResponse, error) {
	v, name, err := s.findContainer(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		i, err := v.garconInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		return &pb.GetLxdContainerUsernameResponse{Status: pb.GetLxdContainerUsernameResponse_SUCCESS, Username: i.user, Homedir: i.home}, nil
	}
	if err := v.needContainers(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.GetContainerUsername(ctx, &tpb.GetContainerUsernameRequest{ContainerName: name})
	if err != nil {
		return nil, wire.Explain("ask for the container's user", err)
	}
	// The numbers of both enumerations are the same.
	st := pb.GetLxdContainerUsernameResponse_Status(r.GetStatus())
	if _, ok := pb.GetLxdContainerUsernameResponse_Status_name[int32(st)]; !ok || st == pb.GetLxdContainerUsernameResponse_UNKNOWN {
		st = pb.GetLxdContainerUsernameResponse_FAILED
	}
	return &pb.GetLxdContainerUsernameResponse{Status: st, FailureReason: wire.Words(r.GetFailureReason()),
		Username: wire.Text(r.GetUsername(), 64), Homedir: wire.Text(r.GetHomedir(), 1024)}, nil
}

// SetUpLxdContainerUser makes the user with uid 1000.
func (s *Service) SetUpLxdContainerUser(ctx context.Context, sub policy.Subject, req *pb.SetUpLxdContainerUserRequest) (*pb.SetUpLxdContainerUserResponse, error) {
	v, name, err := s.findContainer(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		if v.info.Type != appspb.VmType_BAGUETTE {
			return nil, fmt.Errorf("VM %q has no containers: vm_concierge's SetUpVmUser makes its user", v.info.Name)
		}
		return &pb.SetUpLxdContainerUserResponse{Status: pb.SetUpLxdContainerUserResponse_SUCCESS, ContainerUsername: "chronos"}, nil
	}
	if err := checkArguments(req.GetContainerUsername()); err != nil {
		return nil, err
	}
	if err := v.startLxd(ctx, false); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := v.tremplin.SetUpUser(ctx, &tpb.SetUpUserRequest{ContainerName: name, ContainerUsername: req.GetContainerUsername()})
	if err != nil {
		return nil, wire.Explain("set up the container's user", err)
	}
	st := pb.SetUpLxdContainerUserResponse_Status(r.GetStatus())
	if st != pb.SetUpLxdContainerUserResponse_SUCCESS && st != pb.SetUpLxdContainerUserResponse_EXISTS {
		st = pb.SetUpLxdContainerUserResponse_FAILED
	}
	return &pb.SetUpLxdContainerUserResponse{Status: st, FailureReason: wire.Words(r.GetFailureReason()), ContainerUsername: wire.Text(r.GetUsername(), 64)}, nil
}

// EnsureContainer returns when a container has started and has the user, or the
// one that it had before. It creates one that is missing from the image that
// came with the VM, and asks nothing of one that runs: it may be busy.
func (s *Service) EnsureContainer(ctx context.Context, _ policy.Subject, cid uint32, name, user string) error {
	v := s.byCID(cid)
	if v == nil {
		return fmt.Errorf("%w: no VM with CID %d is known", ErrNotFound, cid)
	}
	name, err := orDefault(name)
	if err != nil {
		return err
	}
	if v.containerless() {
		return v.waitRunning(ctx, name)
	}
	if v.isUp(name) {
		return nil
	}
	if err := v.startLxd(ctx, false); err != nil {
		return err
	}
	o, err := v.create(&tpb.CreateContainerRequest{ContainerName: name})
	if err == nil {
		err = v.await(ctx, o)
	}
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := v.tremplin.SetUpUser(call, &tpb.SetUpUserRequest{ContainerName: name, ContainerUsername: user})
	if err != nil {
		return wire.Explain("set up the container's user", err)
	}
	if st := r.GetStatus(); st != tpb.SetUpUserResponse_SUCCESS && st != tpb.SetUpUserResponse_EXISTS {
		return fmt.Errorf("set up user %q in the container: the guest says: %s", user, wire.Words(r.GetFailureReason()))
	}
	if o, err = v.start(&tpb.StartContainerRequest{ContainerName: name}); err == nil {
		err = v.await(ctx, o)
	}
	if err != nil {
		return err
	}
	return v.waitRunning(ctx, name)
}

// isUp says that a container's agent has reported, and nobody stops it.
func (v *vm) isUp(name string) bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	c := v.containers[name]
	return c != nil && c.running && v.ops[opKey{opStop, name}] == nil
}

// await waits for an operation's end.
func (v *vm) await(ctx context.Context, o *operation) error {
	select {
	case <-o.done:
		_, _, err := v.outcome(o)
		return err
	case <-v.s.quit.Done():
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("%s of container %q goes on and takes too long: %w", o.kind, o.container, context.Cause(ctx))
	}
}

// waitRunning waits until a container's agent has reported.
func (v *vm) waitRunning(ctx context.Context, name string) error {
	err := v.wait(ctx, func() (bool, error) {
		c := v.containers[name]
		return c != nil && c.running, nil
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("container %q runs, but its agent does not report: is garcon installed and does its user's systemd run there? %w", name, err)
	}
	return err
}
