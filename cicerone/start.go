package cicerone

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// StartLxdContainer starts a container, and returns when it has started unless
// the request is async.
func (s *Service) StartLxdContainer(ctx context.Context, sub policy.Subject, req *pb.StartLxdContainerRequest) (*pb.StartLxdContainerResponse, error) {
	v, name, err := s.findContainer(sub, req.GetVmName(), req.GetContainerName())
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
		token, made, err := v.nextToken(o.container)
		if err != nil {
			v.fail(o, err)
			return
		}
		req.Token, req.Async = token, true
		// unused voids the token when it was made for nothing. One that was there
		// already may be that of a start before this one.
		unused := func() {
			v.s.mu.Lock()
			defer v.s.mu.Unlock()
			if c := v.containers[o.container]; made && c != nil && c.pending == token {
				c.pending = ""
			}
		}
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
			unused()
			v.s.mu.Lock()
			o.running = true
			v.endOp(o, nil, SignalLxdContainerStarting, &pb.LxdContainerStartingSignal{VmName: v.info.Name, ContainerName: o.container,
				OwnerId: v.info.Owner.Word, Status: pb.LxdContainerStartingSignal_STARTED, OsRelease: osRelease(r.GetOsRelease())})
			v.s.mu.Unlock()
		default:
			unused()
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
