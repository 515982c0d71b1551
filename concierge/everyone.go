package concierge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// visible returns the VMs that a call without an owner is about: the caller's,
// or everybody's when the subject says so. An empty name means all names.
func (s *Service) visible(sub policy.Subject, name string) []*vm {
	s.mu.Lock()
	defer s.mu.Unlock()
	var vms []*vm
	for k, v := range s.vms {
		if maySee(sub, k.uid) && (name == "" || k.name == name) {
			vms = append(vms, v)
		}
	}
	sortVMs(vms)
	return vms
}

// StopVmWithoutOwnerId stops the caller's VMs of a name, whatever their label;
// or everybody's.
func (s *Service) StopVmWithoutOwnerId(ctx context.Context, sub policy.Subject, req *pb.StopVmRequest) (*pb.SuccessFailureResponse, error) {
	if err := policy.CheckName(req.Name); err != nil {
		return nil, err
	}
	if err := stopTogether(ctx, s.visible(sub, req.Name), pb.VmStopReason_STOP_VM_REQUESTED); err != nil {
		return nil, err
	}
	return &pb.SuccessFailureResponse{Success: true}, nil
}

// StopAllVms stops the caller's VMs, or everybody's, all at once. VMs can be started again afterwards.
func (s *Service) StopAllVms(ctx context.Context, sub policy.Subject) error {
	return stopTogether(ctx, s.visible(sub, ""), pb.VmStopReason_STOP_ALL_VMS_REQUESTED)
}

// stopTogether asks all of them before it waits for the first.
func stopTogether(ctx context.Context, vms []*vm, reason pb.VmStopReason) error {
	for _, v := range vms {
		v.requestStop(reason)
	}
	var errs []error
	for _, v := range vms {
		errs = append(errs, stopAndWait(ctx, v, reason))
	}
	return errors.Join(errs...)
}

// SyncVmTimes sets the clocks of the caller's VMs, or everybody's. Suspended ones are told when they go on.
func (s *Service) SyncVmTimes(ctx context.Context, sub policy.Subject) (*pb.SyncVmTimesResponse, error) {
	var mu sync.Mutex
	resp := &pb.SyncVmTimesResponse{}
	s.eachAwake(sub, func(v *vm) {
		err := within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.SetTime(ctx, time.Now()) })
		mu.Lock()
		defer mu.Unlock()
		resp.Requests++
		if err != nil {
			resp.Failures++
			resp.FailureReason = append(resp.FailureReason, fmt.Sprintf("VM %q of owner %s: %v", v.key.name, v.owner.Word, err))
		}
	})
	return resp, nil
}

// fanOut bounds how many guests are called at a time. Those that do not answer
// hold up the rest.
const fanOut = 128

// eachAwake calls f for every VM that the subject may see and whose guest can
// answer, side by side, and waits for all.
func (s *Service) eachAwake(sub policy.Subject, f func(*vm)) {
	s.together(s.pick(sub, func(v *vm) bool { return !v.suspended }), f)
}

// everyone is the subject of what the service does by itself.
var everyone = policy.Subject{Everybody: true}
