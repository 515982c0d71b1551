package concierge

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A State is one snapshot of what a caller may see.
type State struct {
	// Instance names this run of the service, in which Sequence only grows.
	Instance string
	Sequence uint64
	// VMs and Operations are dictionaries like those of the signals VmChanged
	// and OperationChanged.
	VMs, Operations []map[string]any
}

// A notice is a change that its owner is to be told.
type notice struct {
	owner  uint32
	signal string
	seq    uint64
	what   map[string]any
}

// A journal numbers changes and has them told in their order. It is guarded by
// the service's lock, under which a change is numbered together with what it
// changes.
type journal struct {
	instance string
	seq      uint64
	pending  []notice
	wake     chan struct{}
}

func newJournal() journal {
	return journal{instance: uuid.NewString(), wake: make(chan struct{}, 1)}
}

// note numbers a change. The caller holds the service's lock.
func (j *journal) note(owner uint32, signal string, what map[string]any) {
	j.seq++
	j.pending = append(j.pending, notice{owner, signal, j.seq, what})
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// tell sends notices until the service ends.
func (s *Service) tell() {
	for {
		done := false
		select {
		case <-s.journal.wake:
		case <-s.quit.Done():
			done = true
		}
		s.mu.Lock()
		pending := s.journal.pending
		s.journal.pending = nil
		s.mu.Unlock()
		for _, n := range pending {
			s.cfg.Events.EmitChange(n.owner, n.signal, s.journal.instance, n.seq, n.what)
		}
		if done {
			return
		}
	}
}

// Signals of our own interface.
const (
	vmChanged        = "VmChanged"
	operationChanged = "OperationChanged"
)

// changed tells the VM's owner what it is now.
func (s *Service) changed(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.note(v.key.uid, vmChanged, v.describe())
}

// describe is a VM in plain values.
func (v *vm) describe() map[string]any {
	i := v.info()
	v.mu.Lock()
	defer v.mu.Unlock()
	d := map[string]any{
		"name": v.key.name, "owner_id": v.owner.Word, "uid": v.key.uid, "id": v.id,
		"status": v.word(), "cid": v.cid, "pid": uint32(i.Pid), "memory": uint64(i.AllocatedMemory),
		"cpus": uint32(v.cpus), "type": i.VmType.String(),
	}
	if v.net.Guest.IsValid() {
		d["address"] = v.net.Guest.String()
	}
	if !v.since.IsZero() {
		d["started"] = uint64(v.since.UnixMicro())
	}
	if v.image != "" {
		d["image"] = v.image
	}
	if v.startErr != nil {
		d["reason"] = v.startErr.Error()
	}
	return d
}

// word is the VM's status in one word. The caller holds v.mu.
func (v *vm) word() string {
	switch {
	case v.status == pb.VmStatus_VM_STATUS_STOPPED:
		return "stopped"
	case v.asked:
		return "stopping"
	case v.status == pb.VmStatus_VM_STATUS_FAILURE:
		return "lost"
	case v.status == pb.VmStatus_VM_STATUS_STARTING:
		return "starting"
	case v.suspended:
		return "suspended"
	case v.statusNow() == pb.VmStatus_VM_STATUS_STARTING:
		return "starting"
	}
	return "running"
}

// GetState returns the VMs and operations of the caller, or everybody's.
func (s *Service) GetState(_ context.Context, sub policy.Subject) (State, error) {
	return s.snapshot(func(uid uint32) bool { return maySee(sub, uid) }), nil
}

// GetAllState is GetState for everybody's VMs, which needs the administrator's
// right.
func (s *Service) GetAllState(context.Context, policy.Subject) (State, error) {
	return s.snapshot(func(uint32) bool { return true }), nil
}

func (s *Service) snapshot(see func(uid uint32) bool) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Instance: s.journal.instance, Sequence: s.journal.seq}
	var vms []*vm
	for _, v := range s.vms {
		if see(v.key.uid) {
			vms = append(vms, v)
		}
	}
	sortVMs(vms)
	for _, v := range vms {
		st.VMs = append(st.VMs, v.describe())
	}
	st.Operations = s.operations.list(see, time.Now())
	return st
}

func maySee(sub policy.Subject, uid uint32) bool { return sub.Everybody || sub.Caller.UID == uid }
