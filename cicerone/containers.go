package cicerone

import (
	"context"
	"errors"
	"fmt"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// CreateLxdContainer begins to create a container; LxdContainerCreated tells
// the end.
func (s *Service) CreateLxdContainer(ctx context.Context, sub policy.Subject, req *pb.CreateLxdContainerRequest) (*pb.CreateLxdContainerResponse, error) {
	v, name, err := s.findContainer(sub, req.GetVmName(), req.GetContainerName())
	if errors.Is(err, ErrNotFound) {
		return &pb.CreateLxdContainerResponse{Status: pb.CreateLxdContainerResponse_UNKNOWN, FailureReason: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		return &pb.CreateLxdContainerResponse{Status: pb.CreateLxdContainerResponse_EXISTS}, nil
	}
	if err := v.needContainers(); err != nil {
		return nil, err
	}
	if err := checkArguments(req.GetImageServer(), req.GetImageAlias(), req.GetRootfsPath(), req.GetMetadataPath()); err != nil {
		return nil, err
	}
	server, files := req.GetImageServer() != "" || req.GetImageAlias() != "", req.GetRootfsPath() != "" || req.GetMetadataPath() != ""
	switch {
	case server && files:
		return nil, fmt.Errorf("%w: either image_server and image_alias or rootfs_path and metadata_path, not both", ErrInvalid)
	case server && (req.GetImageServer() == "" || req.GetImageAlias() == ""):
		return nil, fmt.Errorf("%w: image_server and image_alias belong together; none of them means the image that came with the VM", ErrInvalid)
	case files && (req.GetRootfsPath() == "" || req.GetMetadataPath() == ""):
		return nil, fmt.Errorf("%w: rootfs_path and metadata_path belong together", ErrInvalid)
	}
	o, err := v.create(&tpb.CreateContainerRequest{ContainerName: name, ImageServer: req.GetImageServer(),
		ImageAlias: req.GetImageAlias(), RootfsPath: req.GetRootfsPath(), MetadataPath: req.GetMetadataPath()})
	if err != nil {
		return nil, err
	}
	v.answered(ctx, o)
	switch ended, begun, err := v.outcome(o); {
	case ended && o.exists:
		return &pb.CreateLxdContainerResponse{Status: pb.CreateLxdContainerResponse_EXISTS}, nil
	case ended && err != nil && !begun:
		return nil, err
	}
	return &pb.CreateLxdContainerResponse{Status: pb.CreateLxdContainerResponse_CREATING}, nil
}

// create begins to create a container, or joins who does.
func (v *vm) create(req *tpb.CreateContainerRequest) (*operation, error) {
	o, fresh, err := v.beginOp(opCreate, req.GetContainerName())
	if err != nil || !fresh {
		return o, err
	}
	v.s.begin(func() {
		if err := v.startLxd(v.ctx, false); err != nil {
			v.fail(o, err)
			return
		}
		ctx, cancel := context.WithTimeout(v.ctx, startTimeout)
		defer cancel()
		r, err := v.tremplin.CreateContainer(ctx, req)
		switch {
		case err != nil:
			v.fail(o, wire.Explain("create the container", err))
		case r.GetStatus() == tpb.CreateContainerResponse_CREATING:
			v.accepted(o)
		case r.GetStatus() == tpb.CreateContainerResponse_EXISTS:
			v.s.mu.Lock()
			o.exists = true
			v.named(o.container)
			// To who was told that it began, it is there now.
			v.endOp(o, nil, SignalLxdContainerCreated, &pb.LxdContainerCreatedSignal{VmName: v.info.Name, ContainerName: o.container,
				OwnerId: v.info.Owner.Word, Status: pb.LxdContainerCreatedSignal_CREATED})
			v.s.mu.Unlock()
		default:
			v.fail(o, fmt.Errorf("create the container: the guest says: %s", wire.Words(r.GetFailureReason())))
		}
	})
	return o, nil
}

// StopLxdContainer stops a container.
func (s *Service) StopLxdContainer(ctx context.Context, sub policy.Subject, req *pb.StopLxdContainerRequest) (*pb.StopLxdContainerResponse, error) {
	name := req.GetContainerName()
	v, err := s.containerVM(sub, req.GetVmName(), name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := v.containers[name] != nil || v.names[name]
	s.mu.Unlock()
	if !known {
		return &pb.StopLxdContainerResponse{Status: pb.StopLxdContainerResponse_STOPPED,
			FailureReason: fmt.Sprintf("VM %q has no container %q that vm_cicerone knows", v.info.Name, name)}, nil
	}
	o, fresh, err := v.beginOp(opStop, name)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return &pb.StopLxdContainerResponse{Status: pb.StopLxdContainerResponse_STOPPING}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.StopContainer(ctx, &tpb.StopContainerRequest{ContainerName: name})
	resp := &pb.StopLxdContainerResponse{FailureReason: wire.Words(r.GetFailureReason())}
	switch {
	case err != nil:
		resp.Status, err = pb.StopLxdContainerResponse_FAILED, wire.Explain("stop the container", err)
	case r.GetStatus() == tpb.StopContainerResponse_STOPPING:
		v.accepted(o)
		resp.Status = pb.StopLxdContainerResponse_STOPPING
		return resp, nil
	case r.GetStatus() == tpb.StopContainerResponse_STOPPED:
		resp.Status = pb.StopLxdContainerResponse_STOPPED
		v.reportStop(name, tpb.ContainerStopProgress_STOPPED, "")
		v.shutdown(name, false)
	case r.GetStatus() == tpb.StopContainerResponse_DOES_NOT_EXIST:
		resp.Status, err = pb.StopLxdContainerResponse_DOES_NOT_EXIST, errors.New("there is no such container")
	default:
		resp.Status, err = pb.StopLxdContainerResponse_FAILED, fmt.Errorf("stop the container: the guest says: %s", resp.FailureReason)
	}
	if err != nil {
		v.fail(o, err)
		resp.FailureReason = err.Error()
	}
	return resp, nil
}

// DeleteLxdContainer begins to delete a container; LxdContainerDeleted tells
// the end.
func (s *Service) DeleteLxdContainer(ctx context.Context, sub policy.Subject, req *pb.DeleteLxdContainerRequest) (*pb.DeleteLxdContainerResponse, error) {
	name := req.GetContainerName()
	v, err := s.containerVM(sub, req.GetVmName(), name)
	if err != nil {
		return nil, err
	}
	if err := v.startLxd(ctx, false); err != nil {
		return nil, err
	}
	o, fresh, err := v.beginOp(opDelete, name)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return &pb.DeleteLxdContainerResponse{Status: pb.DeleteLxdContainerResponse_DELETING}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.DeleteContainer(ctx, &tpb.DeleteContainerRequest{ContainerName: name})
	resp := &pb.DeleteLxdContainerResponse{FailureReason: wire.Words(r.GetFailureReason())}
	switch {
	case err != nil:
		resp.Status, err = pb.DeleteLxdContainerResponse_FAILED, wire.Explain("delete the container", err)
	case r.GetStatus() == tpb.DeleteContainerResponse_DELETING:
		v.accepted(o)
		resp.Status = pb.DeleteLxdContainerResponse_DELETING
		return resp, nil
	case r.GetStatus() == tpb.DeleteContainerResponse_DOES_NOT_EXIST:
		resp.Status, err = pb.DeleteLxdContainerResponse_DOES_NOT_EXIST, fmt.Errorf("VM %q has no container %q", v.info.Name, name)
		s.mu.Lock()
		unused := v.forget(name)
		s.mu.Unlock()
		closeUnused(unused)
	default:
		resp.Status, err = pb.DeleteLxdContainerResponse_FAILED, fmt.Errorf("delete the container: the guest says: %s", resp.FailureReason)
	}
	v.fail(o, err)
	resp.FailureReason = err.Error()
	return resp, nil
}
