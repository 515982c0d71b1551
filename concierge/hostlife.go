package concierge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// ErrHostShutdown is the refusal of a start while the host goes down.
var ErrHostShutdown = &kind{"the host is shutting down", "HostShutdown"}

// A LogoutPolicy says what becomes of a user's VMs when the user's last
// session has ended.
type LogoutPolicy string

const (
	LogoutKeep    LogoutPolicy = "keep"
	LogoutStop    LogoutPolicy = "stop"
	LogoutSuspend LogoutPolicy = "suspend"
)

// Valid says whether p is one of the policies.
func (p LogoutPolicy) Valid() bool {
	return p == LogoutKeep || p == LogoutStop || p == LogoutSuspend
}

// PrepareForSleep with about set suspends all VMs that run and returns when
// they stand still, or ctx is done: the machine sleeps then, with them or
// without. Without about, the machine is awake, or does not sleep after all:
// VMs that were suspended for it go on, and the clocks of all are set right.
// VMs that their users had suspended stay so.
func (s *Service) PrepareForSleep(ctx context.Context, about bool) {
	if !about {
		s.wake(ctx)
		return
	}
	vms := s.pick(everyone, func(v *vm) bool { return !v.suspended })
	if len(vms) == 0 {
		return
	}
	s.log.Info("the host is about to sleep: suspending VMs", "vms", len(vms))
	s.together(vms, func(v *vm) {
		if err := s.inTurn(ctx, v, opSuspend, s.lull); err != nil {
			v.log.Warn("the VM sleeps with the host without having been suspended", "err", err)
		}
	})
}

// wake is for a host that is awake.
func (s *Service) wake(ctx context.Context) {
	s.mu.Lock()
	s.hostChanges.clock++ // for guests that are being set up
	s.mu.Unlock()
	asleep := s.pick(everyone, func(v *vm) bool { return v.suspended && v.asleep })
	awake := s.pick(everyone, func(v *vm) bool { return !v.suspended })
	if len(asleep) > 0 {
		s.log.Info("the host is awake: VMs go on", "vms", len(asleep))
	}
	s.together(append(asleep, awake...), func(v *vm) {
		// By now its user may have let it go on, or suspended it for good.
		if v.sleeps() {
			if err := s.inTurn(ctx, v, opResume, s.resume); err != nil {
				v.log.Error("the VM was suspended with the host and does not go on; resume it, or stop it", "err", err)
			}
			return
		}
		s.tellTime(ctx, v)
	})
}

// tellTime sets a guest's clock. A guest can live with a wrong one, so a
// failure is only logged.
func (s *Service) tellTime(ctx context.Context, v *vm) {
	if err := within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.SetTime(ctx, time.Now()) }); err != nil {
		v.log.Warn("the guest's clock may be wrong", "err", err)
	}
}

// lull suspends a VM for the time that its host sleeps. The host does not wait
// for a guest that cannot prepare itself, so neither does this. It is called by
// whoever has the VM's turn.
func (s *Service) lull(ctx context.Context, v *vm, m *vmm.Machine) error {
	if v.isSuspended() {
		return nil
	}
	if s.isResizing(v) {
		// It needs the guest's answers; the clock is set right afterwards.
		return fmt.Errorf("VM %q is being given a disk of another size", v.key.name)
	}
	v.told = s.changesSoFar()
	prepare := agentTimeout
	if end, ok := ctx.Deadline(); ok {
		prepare = min(prepare, time.Until(end)*2/3)
	}
	if err := within(ctx, prepare, v.agent.PrepareToSuspend); err != nil {
		v.log.Warn("the guest has not prepared itself for the host's sleep", "err", err)
	}
	// Noted first: a service that ends between the two must not take it for
	// suspended by its user.
	s.setAsleep(v, true)
	if err := s.pause(ctx, v, m); err != nil {
		s.setAsleep(v, false)
		return err
	}
	s.noteAside(v, vmlog.Info, "the VM is suspended while the host sleeps")
	return nil
}

// sleeps says whether the VM is suspended because its host is.
func (v *vm) sleeps() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.suspended && v.asleep
}

// setAsleep notes for whom the VM is suspended, also for the next service. It
// is called by whoever has the VM's turn.
func (s *Service) setAsleep(v *vm, asleep bool) {
	v.mu.Lock()
	same := v.asleep == asleep
	v.asleep = asleep
	v.mu.Unlock()
	if same {
		return
	}
	if err := s.writeRecord(v, recordRunning); err != nil {
		v.log.Warn("a restarted service will not know why the VM is suspended", "err", err)
	}
	// It may have ended meanwhile, and its record must not come back.
	if v.ended() {
		select {
		case <-v.gone:
			s.removeRecord(v)
		case <-s.quit.Done(): // who has not been told of the end, the next service tells
		}
	}
}

// PrepareForShutdown with about set stops all VMs in order, side by side, and
// refuses new ones; it returns when they have gone, or ctx is done. Without
// about the shutdown was called off, and VMs can be started again.
func (s *Service) PrepareForShutdown(ctx context.Context, about bool) {
	s.mu.Lock()
	before := s.hostDown
	s.hostDown = about
	s.mu.Unlock()
	if !about {
		if before {
			s.log.Info("the host does not shut down after all: VMs can be started again")
		}
		return
	}
	vms := s.visible(everyone, "")
	s.log.Info("the host shuts down: stopping VMs", "vms", len(vms))
	if err := stopTogether(ctx, vms, pb.VmStopReason_SERVICE_SHUTDOWN); err != nil {
		s.log.Warn("VMs are still being stopped; auberge-guests.service waits for them", "err", err)
	}
}

// UserRemoved is called when a user's last session has ended. It does not wait
// for what becomes of the user's VMs.
func (s *Service) UserRemoved(uid uint32) {
	if s.cfg.Logout != LogoutStop && s.cfg.Logout != LogoutSuspend {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for k, v := range s.vms {
		if k.uid != uid {
			continue
		}
		v.log.Info("the VM's user has logged out", "policy", string(s.cfg.Logout))
		if s.cfg.Logout == LogoutStop {
			v.requestStop(pb.VmStopReason_STOP_VM_REQUESTED)
			continue
		}
		s.running.Go(func() { s.suspendLater(v) })
	}
}

// suspendLater suspends a VM, when it has been started.
func (s *Service) suspendLater(v *vm) {
	select {
	case <-v.started:
	case <-s.quit.Done():
		return
	}
	if err := s.inTurn(s.quit, v, opSuspend, s.suspend); err != nil && s.quit.Err() == nil {
		v.log.Warn("the VM runs on although its user has logged out", "err", err)
	}
}

// pick returns the VMs that the subject may see, that have been started and are not on their way out,
// and of which f, called with the VM's lock, is true.
func (s *Service) pick(sub policy.Subject, f func(*vm) bool) []*vm {
	var picked []*vm
	for _, v := range s.visible(sub, "") {
		v.mu.Lock()
		if v.status == pb.VmStatus_VM_STATUS_RUNNING && !v.asked && f(v) {
			picked = append(picked, v)
		}
		v.mu.Unlock()
	}
	return picked
}

// together calls f for each VM, side by side, and waits for all.
func (s *Service) together(vms []*vm, f func(*vm)) {
	var wg sync.WaitGroup
	free := make(chan struct{}, fanOut)
	for _, v := range vms {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			f(v)
		})
	}
	wg.Wait()
}
