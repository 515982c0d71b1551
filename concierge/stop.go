package concierge

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// StopVm stops a VM in order and returns when it has gone. A VM that does not
// run is stopped already.
func (s *Service) StopVm(ctx context.Context, sub policy.Subject, req *pb.StopVmRequest) (*pb.SuccessFailureResponse, error) {
	v, err := s.lookup(sub, req.Name)
	if errors.Is(err, ErrNotFound) {
		return &pb.SuccessFailureResponse{Success: true}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := stopAndWait(ctx, v, pb.VmStopReason_STOP_VM_REQUESTED); err != nil {
		return nil, err
	}
	return &pb.SuccessFailureResponse{Success: true}, nil
}

func stopAndWait(ctx context.Context, v *vm, reason pb.VmStopReason) error {
	v.requestStop(reason)
	select {
	case <-v.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("VM %q is still stopping: %w", v.key.name, context.Cause(ctx))
	}
}

func (s *Service) emit(v *vm, signal string, msg proto.Message) {
	s.cfg.Events.Emit(v.key.uid, signal, msg)
}

// GetVmInfo tells what is known of a VM.
func (s *Service) GetVmInfo(_ context.Context, sub policy.Subject, req *pb.GetVmInfoRequest) (*pb.GetVmInfoResponse, error) {
	v, err := s.find(sub, req.Name)
	if err != nil {
		return nil, err
	}
	return &pb.GetVmInfoResponse{Success: true, VmInfo: v.info()}, nil
}

// ListVms lists an owner's VMs, sorted by owner word and name; with an empty
// owner, those of all of the caller's labels.
func (s *Service) ListVms(_ context.Context, sub policy.Subject, _ *pb.ListVmsRequest) (*pb.ListVmsResponse, error) {
	s.mu.Lock()
	var vms []*vm
	for k, v := range s.vms {
		if k.uid == sub.Owner.UID && (sub.Owner.All || k.label == sub.Owner.Label) && !v.ended() {
			vms = append(vms, v)
		}
	}
	s.mu.Unlock()
	sortVMs(vms)
	resp := &pb.ListVmsResponse{Success: true}
	for _, v := range vms {
		info := v.info()
		resp.Vms = append(resp.Vms, &pb.ExtendedVmInfo{Name: v.key.name, OwnerId: v.owner.Word, VmInfo: info, Status: info.Status})
	}
	return resp, nil
}
