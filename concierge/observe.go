package concierge

import (
	"sync/atomic"
	"time"

	"github.com/auberge-vm/auberge/guestlink"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// An Observer is told what the service does, to measure it. Its methods are
// quick and wait for nothing.
type Observer interface {
	// GuestCalled is told of calls to guests' agents.
	GuestCalled(guestlink.Call)
	// OperationEnded is told of each operation's kind, end and time; a start
	// of a VM is one of them.
	OperationEnded(kind, status string, took time.Duration)
}

// A health is what a guest's agent has last given of itself. Nobody is asked
// for it: guests are called when there is something to say.
type health struct {
	answered atomic.Int64 // microseconds since 1970
	silent   atomic.Bool
}

func (h *health) heard() {
	h.answered.Store(time.Now().UnixMicro())
	h.silent.Store(false)
}

func (s *Service) guestCalled(v *vm, c guestlink.Call) {
	switch {
	case c.Answered:
		v.health.heard()
	case c.Code != "Canceled": // we gave up, for which the guest can do nothing
		v.health.silent.Store(true)
	}
	if s.cfg.Observer != nil {
		s.cfg.Observer.GuestCalled(c)
	}
}

// Stats are what there is at a moment, for measurements.
type Stats struct {
	VMs []VMStats
	// Running counts operations in progress by kind.
	Running map[string]int
	// StateFree and RuntimeFree are the free space of the directories, in
	// bytes, negative where that is not known.
	StateFree, RuntimeFree int64
	// MemoryFree is what the host can give to VMs, in bytes.
	MemoryFree uint64
}

// VMStats are of one VM.
type VMStats struct {
	UID         uint32
	Label, Name string
	State       string
	Memory      int64 // bytes it was started with
	// Answered is when its agent last answered, zero when it has not since the
	// service was started; Silent that it did not answer when last called.
	Answered time.Time
	Silent   bool
	Use      Use
}

// OperationKinds are all kinds of operations.
func OperationKinds() []string { return []string{opStart, opStop, opSuspend, opResume, opResize} }

// VMStates are all words for the state of a VM.
func VMStates() []string {
	return []string{"starting", "running", "suspended", "stopping", "lost"}
}

// Stats looks at everything. It reads a few small files for each VM.
func (s *Service) Stats() Stats {
	st := Stats{Running: map[string]int{}, StateFree: -1, RuntimeFree: -1}
	s.mu.Lock()
	var vms []*vm
	for _, v := range s.vms {
		vms = append(vms, v)
	}
	sortVMs(vms)
	for _, o := range s.operations {
		if o.status == opRunning {
			st.Running[o.kind]++
		}
	}
	s.mu.Unlock()
	for _, v := range vms {
		v.mu.Lock()
		one := VMStats{UID: v.key.uid, Label: v.key.label, Name: v.key.name, State: v.word(), Memory: v.memory,
			Silent: v.health.silent.Load()}
		supervisor, stopped := v.processes.Supervisor, v.status == pb.VmStatus_VM_STATUS_STOPPED
		v.mu.Unlock()
		if at := v.health.answered.Load(); at != 0 {
			one.Answered = time.UnixMicro(at)
		}
		if stopped {
			continue // only its place in the table is still taken
		}
		one.Use = useOf("/", v.id, supervisor)
		st.VMs = append(st.VMs, one)
	}
	if n, err := freeSpace(s.disksDir()); err == nil {
		st.StateFree = n
	}
	if n, err := freeSpace(s.cfg.RuntimeDir); err == nil {
		st.RuntimeFree = n
	}
	_, st.MemoryFree = hostMemory()
	return st
}

// Usages adds up what each user has who has something. It looks at every disk
// image.
func (s *Service) Usages() ([]Usage, error) {
	uids, err := s.usersWithState()
	if err != nil {
		return nil, err
	}
	var all []Usage
	for _, uid := range uids {
		u, err := s.usageOf(uid)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}
