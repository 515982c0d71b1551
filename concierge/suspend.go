package concierge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// up is find for a VM that has been started and is not on its way out.
func (s *Service) up(sub policy.Subject, name string) (*vm, *vmm.Machine, error) {
	v, err := s.find(sub, name)
	if err != nil {
		return nil, nil, err
	}
	m, err := v.running()
	if err != nil {
		return nil, nil, err
	}
	return v, m, nil
}

// running is the machine of a VM that has been started and is not on its way
// out.
func (v *vm) running() (*vmm.Machine, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	name := v.key.name
	switch {
	case v.status == pb.VmStatus_VM_STATUS_STOPPED:
		return nil, fmt.Errorf("%w: %q has ended", ErrNotFound, name)
	case v.asked:
		return nil, fmt.Errorf("%w: %q is being stopped", ErrNotRunning, name)
	case v.status == pb.VmStatus_VM_STATUS_FAILURE:
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, v.startErr)
	case v.status != pb.VmStatus_VM_STATUS_RUNNING:
		return nil, fmt.Errorf("%w: %q is still being started", ErrNotRunning, name)
	}
	return v.machine, nil
}

// awake is up for what the guest has to answer.
func (s *Service) awake(sub policy.Subject, name string) (*vm, error) {
	v, _, err := s.up(sub, name)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.suspended {
		return nil, fmt.Errorf("%w: %q is suspended; resume it first", ErrNotRunning, name)
	}
	return v, nil
}

// takeTurn waits until nobody else suspends, resumes or stops the VM.
func (v *vm) takeTurn(ctx context.Context) error {
	select {
	case v.turn <- struct{}{}:
		return nil
	case <-v.gone:
		return fmt.Errorf("%w: %q has ended", ErrNotFound, v.key.name)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (v *vm) endTurn() { <-v.turn }

// SuspendVm has the guest write what it has to its disks and stops its
// processors. A VM that is suspended already is a success, and so is one that
// does not run.
func (s *Service) SuspendVm(ctx context.Context, sub policy.Subject, req *pb.SuspendVmRequest) (*pb.SuccessFailureResponse, error) {
	return s.power(ctx, sub, req.Name, opSuspend, s.suspend)
}

// ResumeVm lets a suspended VM go on, with the right time.
func (s *Service) ResumeVm(ctx context.Context, sub policy.Subject, req *pb.ResumeVmRequest) (*pb.SuccessFailureResponse, error) {
	return s.power(ctx, sub, req.Name, opResume, s.resume)
}

func (s *Service) power(ctx context.Context, sub policy.Subject, name, kind string,
	f func(context.Context, *vm, *vmm.Machine) error) (*pb.SuccessFailureResponse, error) {
	v, _, err := s.up(sub, name)
	if err == nil {
		err = s.inTurn(ctx, v, kind, f)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return &pb.SuccessFailureResponse{Success: true}, nil
}

func (s *Service) inTurn(ctx context.Context, v *vm, kind string, f func(context.Context, *vm, *vmm.Machine) error) error {
	if err := v.takeTurn(ctx); err != nil {
		return fmt.Errorf("VM %q is busy: %w", v.key.name, err)
	}
	defer v.endTurn()
	// Whoever had the turn may have told the guest to power off.
	m, err := v.running()
	if err != nil {
		return err
	}
	op := s.beginOperation(kind, v.owner, v.key.name, nil)
	err = f(ctx, v, m)
	s.finish(op, err)
	return err
}

// suspend is called by whoever has the VM's turn.
func (s *Service) suspend(ctx context.Context, v *vm, m *vmm.Machine) error {
	if v.isSuspended() {
		s.setAsleep(v, false) // whatever the host does, it stays so
		return nil
	}
	if s.isResizing(v) {
		return fmt.Errorf("VM %q cannot be suspended while its disk is resized; wait for that, or cancel it with CancelDiskImageOperation", v.key.name)
	}
	v.told = s.changesSoFar()
	err := within(ctx, agentTimeout, v.agent.PrepareToSuspend)
	if err != nil {
		return err
	}
	s.setAsleep(v, false) // a service that was killed may have noted it
	if err := s.pause(ctx, v, m); err != nil {
		return err
	}
	s.noteAside(v, vmlog.Info, "the VM is suspended")
	return nil
}

func (s *Service) isResizing(v *vm) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return v.resizing
}

// pause stops a VM's processors.
func (s *Service) pause(ctx context.Context, v *vm, m *vmm.Machine) error {
	if err := m.Pause(ctx); err != nil {
		// Its answer may be what is missing, and then nobody would know that
		// the VM stands still.
		if rerr := within(context.WithoutCancel(ctx), exitGrace, m.Resume); rerr != nil {
			err = fmt.Errorf("%w; it may stand still all the same, ResumeVm then lets it go on (%w)", err, rerr)
		}
		return err
	}
	s.setSuspended(v, true)
	return nil
}

// resume is called by whoever has the VM's turn. A guest that cannot be told
// the time runs all the same.
func (s *Service) resume(ctx context.Context, v *vm, m *vmm.Machine) error {
	// Also one that should not stand still: see suspend.
	if err := m.Resume(ctx); err != nil {
		return err
	}
	if !v.isSuspended() {
		return nil
	}
	s.setSuspended(v, false)
	s.setAsleep(v, false)
	s.noteAside(v, vmlog.Info, "the VM goes on")
	if err := within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.SetTime(ctx, time.Now()) }); err != nil {
		return fmt.Errorf("the VM goes on, but with a wrong clock: %w", err)
	}
	s.refresh(ctx, v)
	if s.changesSoFar().network != v.told.network {
		s.tellNetworkChanged(ctx, v)
	}
	return nil
}

func (v *vm) isSuspended() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.suspended
}

func (s *Service) setSuspended(v *vm, on bool) {
	v.mu.Lock()
	v.suspended = on
	// It may have been told just when it fell asleep.
	v.spaceTold = v.spaceTold && on
	v.mu.Unlock()
	s.changed(v)
}

// within calls f with a deadline.
func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}
