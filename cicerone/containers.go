package cicerone

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// answerTimeout is how long a caller waits for an operation to begin, when the
// container manager has to be started first: clients give up after 25 s.
const answerTimeout = 15 * time.Second

// tooLong is for reasons, names and paths of callers that end up in messages
// to guests.
const maxArgument = 4096

func checkArguments(args ...string) error {
	for _, a := range args {
		if len(a) > maxArgument {
			return fmt.Errorf("%w: an argument of %d bytes is longer than %d", ErrInvalid, len(a), maxArgument)
		}
	}
	return nil
}

// startLxd returns when the container manager runs.
func (v *vm) startLxd(ctx context.Context, reset bool) error {
	if err := v.needContainers(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lxdTimeout, errors.New("the container manager did not start in time"))
	defer cancel()
	for {
		v.s.mu.Lock()
		fails, starts := v.lxdFails, v.lxdStarts
		v.s.mu.Unlock()
		r, err := v.askLxd(ctx, reset)
		if err != nil {
			return err
		}
		switch r.GetStatus() {
		case tpb.StartLxdResponse_ALREADY_RUNNING:
			return nil
		case tpb.StartLxdResponse_STARTING:
		default:
			return fmt.Errorf("start the container manager: the guest says: %s", wire.Words(r.GetFailureReason()))
		}
		// Asked again now and then, in case its word was lost.
		some, stop := context.WithTimeout(ctx, v.s.cfg.WatchInterval)
		err = v.wait(some, func() (bool, error) {
			if v.lxdFails != fails {
				return false, fmt.Errorf("start the container manager: %s", v.lxdErr)
			}
			return v.lxdStarts != starts, nil
		})
		again := some.Err() != nil && ctx.Err() == nil
		stop()
		if err == nil || !again {
			return err
		}
		reset = false
	}
}

// askLxd calls StartLxd, when need be after tremplin has come up.
func (v *vm) askLxd(ctx context.Context, reset bool) (*tpb.StartLxdResponse, error) {
	for first := true; ; first = false {
		v.s.mu.Lock()
		ready := v.ready
		v.s.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, callTimeout)
		r, err := v.tremplin.StartLxd(call, &tpb.StartLxdRequest{ResetLxdDb: reset})
		cancel()
		if err == nil {
			return r, nil
		}
		if !first || ready || status.Code(err) != codes.Unavailable {
			return nil, wire.Explain("start the container manager", err)
		}
		some, stop := context.WithTimeoutCause(ctx, callTimeout, errors.New("tremplin, which manages containers, has not come up in the VM"))
		err = v.wait(some, func() (bool, error) { return v.ready, nil })
		stop()
		if err != nil {
			return nil, err
		}
	}
}

// StartLxd starts the container manager; StartLxdProgress tells the rest.
func (s *Service) StartLxd(ctx context.Context, sub policy.Subject, req *pb.StartLxdRequest) (*pb.StartLxdResponse, error) {
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		return &pb.StartLxdResponse{Status: pb.StartLxdResponse_ALREADY_RUNNING}, nil
	}
	if err := v.needContainers(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.StartLxd(ctx, &tpb.StartLxdRequest{ResetLxdDb: req.GetResetLxdDb()})
	if err != nil {
		return nil, wire.Explain("start the container manager", err)
	}
	resp := &pb.StartLxdResponse{FailureReason: wire.Words(r.GetFailureReason())}
	switch r.GetStatus() {
	case tpb.StartLxdResponse_STARTING:
		resp.Status = pb.StartLxdResponse_STARTING
	case tpb.StartLxdResponse_ALREADY_RUNNING:
		resp.Status = pb.StartLxdResponse_ALREADY_RUNNING
	default:
		resp.Status = pb.StartLxdResponse_FAILED
	}
	return resp, nil
}

// answered waits until an operation has begun or ended, but not too long.
func (v *vm) answered(ctx context.Context, o *operation) {
	t := time.NewTimer(answerTimeout)
	defer t.Stop()
	select {
	case <-o.started:
	case <-t.C:
	case <-ctx.Done():
	case <-v.s.quit.Done():
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.ops[o.key()] == o {
		o.mark()
	}
}

// outcome is how an operation stands, and whether signals tell of it.
func (v *vm) outcome(o *operation) (ended, begun bool, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.ops[o.key()] != o, o.begun, o.err
}

// CreateLxdContainer begins to create a container; LxdContainerCreated tells
// the end.
func (s *Service) CreateLxdContainer(ctx context.Context, sub policy.Subject, req *pb.CreateLxdContainerRequest) (*pb.CreateLxdContainerResponse, error) {
	v, err := s.find(sub, req.GetVmName())
	if errors.Is(err, ErrNotFound) {
		return &pb.CreateLxdContainerResponse{Status: pb.CreateLxdContainerResponse_UNKNOWN, FailureReason: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	name, err := orDefault(req.GetContainerName())
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

// StartLxdContainer starts a container, and returns when it has started unless
// the request is async.
func (s *Service) StartLxdContainer(ctx context.Context, sub policy.Subject, req *pb.StartLxdContainerRequest) (*pb.StartLxdContainerResponse, error) {
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	name, err := orDefault(req.GetContainerName())
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		return &pb.StartLxdContainerResponse{Status: pb.StartLxdContainerResponse_RUNNING}, nil
	}
	if err := v.needContainers(); err != nil {
		return nil, err
	}
	if req.GetDrivefsMountPath() != "" {
		return nil, fmt.Errorf("%w: drivefs_mount_path: there is no Drive on this host", ErrInvalid)
	}
	level := tpb.StartContainerRequest_PrivilegeLevel(req.GetPrivilegeLevel())
	if _, ok := tpb.StartContainerRequest_PrivilegeLevel_name[int32(level)]; !ok {
		return nil, fmt.Errorf("%w: privilege_level %d is not known", ErrInvalid, level)
	}
	o, err := v.start(&tpb.StartContainerRequest{ContainerName: name, PrivilegeLevel: level, DisableAudioCapture: req.GetDisableAudioCapture()})
	if err != nil {
		return nil, err
	}
	if req.GetAsync() {
		v.answered(ctx, o)
	} else {
		t := time.NewTimer(startTimeout)
		defer t.Stop()
		select {
		case <-o.done:
		case <-t.C:
		case <-ctx.Done():
		case <-s.quit.Done():
		}
		v.answered(ctx, o)
	}
	ended, _, err := v.outcome(o)
	resp := &pb.StartLxdContainerResponse{OsRelease: v.osOf(name)}
	switch {
	case !ended:
		resp.Status = pb.StartLxdContainerResponse_STARTING
	case err != nil:
		resp.Status, resp.FailureReason = pb.StartLxdContainerResponse_FAILED, err.Error()
	case o.running:
		resp.Status = pb.StartLxdContainerResponse_RUNNING
	default:
		resp.Status = pb.StartLxdContainerResponse_STARTED
	}
	return resp, nil
}

func (v *vm) osOf(name string) *pb.OsRelease {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if c := v.containers[name]; c != nil {
		return c.os
	}
	return nil
}

// start begins to start a container, or joins who does.
func (v *vm) start(req *tpb.StartContainerRequest) (*operation, error) {
	o, fresh, err := v.beginOp(opStart, req.GetContainerName())
	if err != nil || !fresh {
		return o, err
	}
	v.s.begin(func() {
		replied := sync.OnceFunc(func() { close(o.replied) })
		defer replied()
		if err := v.startLxd(v.ctx, false); err != nil {
			v.fail(o, err)
			return
		}
		ctx, cancel := context.WithTimeout(v.ctx, startTimeout)
		defer cancel()
		token, err := v.newToken(o.container)
		if err != nil {
			v.fail(o, err)
			return
		}
		req.Token, req.Async = token, true
		if req.HostPublicKey, req.ContainerPrivateKey, err = v.s.cfg.Concierge.ContainerKeys(ctx, v.info.CID, o.container); err != nil {
			v.log.Warn("the container starts without keys: ssh will not get into it", "container", o.container, "err", err)
		}
		r, err := v.askStart(ctx, o, req)
		if err != nil {
			v.fail(o, err)
			return
		}
		v.noteOS(o.container, r.GetOsRelease())
		replied()
		switch r.GetStatus() {
		case tpb.StartContainerResponse_STARTING, tpb.StartContainerResponse_REMAPPING:
			v.accepted(o)
		case tpb.StartContainerResponse_STARTED:
			v.reportStart(o.container, tpb.ContainerStartProgress_STARTED, "")
		case tpb.StartContainerResponse_RUNNING:
			v.s.mu.Lock()
			// It has the token that it was started with.
			if c := v.containers[o.container]; c != nil && c.pending == token && c.token != "" {
				c.pending = ""
			}
			o.running = true
			v.endOp(o, nil, SignalLxdContainerStarting, &pb.LxdContainerStartingSignal{VmName: v.info.Name, ContainerName: o.container,
				OwnerId: v.info.Owner.Word, Status: pb.LxdContainerStartingSignal_STARTED, OsRelease: osRelease(r.GetOsRelease())})
			v.s.mu.Unlock()
		default:
			v.fail(o, fmt.Errorf("start the container: the guest says: %s", wire.Words(r.GetFailureReason())))
		}
	})
	return o, nil
}

func (v *vm) noteOS(name string, os *tpb.OsRelease) {
	if os == nil {
		return
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if c := v.containers[name]; c != nil {
		c.os = osRelease(os)
	}
}

func osRelease(o *tpb.OsRelease) *pb.OsRelease {
	if o == nil {
		return nil
	}
	const limit = 128
	return &pb.OsRelease{PrettyName: wire.Text(o.GetPrettyName(), limit), Name: wire.Text(o.GetName(), limit),
		Version: wire.Text(o.GetVersion(), limit), VersionId: wire.Text(o.GetVersionId(), limit), Id: wire.Text(o.GetId(), limit)}
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

// GetLxdContainerUsername returns the user with uid 1000.
func (s *Service) GetLxdContainerUsername(ctx context.Context, sub policy.Subject, req *pb.GetLxdContainerUsernameRequest) (*pb.GetLxdContainerUsernameResponse, error) {
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	name, err := orDefault(req.GetContainerName())
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
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	name, err := orDefault(req.GetContainerName())
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

// EnsureContainer returns when a container has started and has the user. It
// creates one that is missing from the image that came with the VM.
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
