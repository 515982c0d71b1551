package concierge

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// Containers is the service that knows what is in VMs, vm_cicerone. Nothing of
// a VM depends on it. It is not started to be told of a VM, which may be an
// error; it asks for what it has not heard of.
type Containers interface {
	// VMStarted says that there is a VM to look at.
	VMStarted(ctx context.Context, v ContainerVM) error
	// VMStopping says that one is about to stop in order, VMStopped that it has
	// gone.
	VMStopping(ctx context.Context, owner policy.Owner, name string) error
	VMStopped(ctx context.Context, owner policy.Owner, name string) error
	// Start starts the service when it is not there.
	Start(ctx context.Context) error
	// EnsureContainer returns when a container of a VM runs, which is made for
	// that when it is missing. The service is started when it is not there.
	EnsureContainer(ctx context.Context, cid uint32, container, user string) error
}

// A ContainerVM is what Containers has to know of a VM.
type ContainerVM struct {
	Owner   policy.Owner
	Name    string
	Subnet  netip.Prefix // of the containers, the zero value where there are none
	Address netip.Addr
	Type    appspb.VmType
	CID     uint32
	Token   string
	PID     int
}

const (
	// noticeTimeout bounds one word to Containers.
	noticeTimeout = 10 * time.Second
	// stoppedPatience is how long the end of a VM waits to be told to its owner
	// until Containers has told the owner of the ends in it.
	stoppedPatience = 500 * time.Millisecond
)

// notices are what Containers is still to be told of a VM, in order.
type notices struct {
	mu      sync.Mutex
	pending []vmNotice
	busy    bool
}

type vmNotice struct {
	what string
	call func(context.Context) error
	done chan struct{}
}

// notify tells Containers something of a VM, after what was said of it before,
// and waits for nothing. What is returned is closed when that has been
// answered.
func (s *Service) notify(v *vm, what string, call func(context.Context) error) <-chan struct{} {
	n := vmNotice{what: what, call: call, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Containers == nil || s.closed {
		close(n.done)
		return n.done
	}
	v.notices.mu.Lock()
	defer v.notices.mu.Unlock()
	v.notices.pending = append(v.notices.pending, n)
	if !v.notices.busy {
		v.notices.busy = true
		s.running.Go(func() { s.sendNotices(v) })
	}
	return n.done
}

func (s *Service) sendNotices(v *vm) {
	q := &v.notices
	for {
		q.mu.Lock()
		if len(q.pending) == 0 {
			q.busy = false
			q.mu.Unlock()
			return
		}
		n := q.pending[0]
		q.pending = q.pending[1:]
		q.mu.Unlock()
		if err := within(s.quit, noticeTimeout, n.call); err != nil {
			v.log.Debug("vm_cicerone was not told of the VM; it will ask", "what", n.what, "err", err)
		}
		close(n.done)
	}
}

func (s *Service) notifyStarted(v *vm) {
	s.notify(v, "started", func(ctx context.Context) error {
		pid := int(v.info().Pid)
		v.mu.Lock()
		c := ContainerVM{Owner: v.owner, Name: v.key.name, Subnet: v.subnet, Address: v.net.Guest, Type: appType(v.typ),
			CID: v.cid, Token: v.token, PID: pid}
		v.mu.Unlock()
		return s.cfg.Containers.VMStarted(ctx, c)
	})
}

func (s *Service) notifyStopping(v *vm) {
	s.notify(v, "stopping", func(ctx context.Context) error {
		return s.cfg.Containers.VMStopping(ctx, v.owner, v.key.name)
	})
}

// notifyStopped returns when Containers has told of the end of what was in the
// VM, or has taken too long.
func (s *Service) notifyStopped(v *vm) {
	done := s.notify(v, "stopped", func(ctx context.Context) error {
		return s.cfg.Containers.VMStopped(ctx, v.owner, v.key.name)
	})
	t := time.NewTimer(stoppedPatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-s.quit.Done():
	}
}

// ContainersReturned tells Containers of all VMs: it is another one than
// before, or this service is.
func (s *Service) ContainersReturned() {
	for _, v := range s.reachable() {
		s.notifyStarted(v)
	}
}

// tremplinState says whether a VM's containers can be managed.
type tremplinState int

const (
	tremplinNone    tremplinState = iota // it has no manager of containers
	tremplinAwaited                      // that has not reported yet
	tremplinReady
)

// statusNow is the VM's status as others see it. The caller holds v.mu. A VM
// without its containers' manager is not complete, though all else of it can
// be used.
func (v *vm) statusNow() pb.VmStatus {
	if v.status == pb.VmStatus_VM_STATUS_RUNNING && v.tremplin == tremplinAwaited {
		return pb.VmStatus_VM_STATUS_STARTING
	}
	return v.status
}

// TremplinReady says that a VM's manager of containers can be reached.
func (s *Service) TremplinReady(_ context.Context, cid uint32) error {
	v, _, err := s.byCID(cid)
	if err != nil {
		return err
	}
	v.mu.Lock()
	before := v.tremplin
	if before == tremplinAwaited {
		v.tremplin = tremplinReady
		close(v.containersUp)
	}
	v.mu.Unlock()
	switch before {
	case tremplinNone:
		return fmt.Errorf("%w: VM %q was not started for containers", ErrInvalid, v.key.name)
	case tremplinReady:
		return nil
	}
	s.changed(v)
	s.noteAside(v, vmlog.Info, "the VM's containers can be used")
	return s.recordReady(v)
}

// recordReady has a restarted service know that a VM's containers can be used.
func (s *Service) recordReady(v *vm) error {
	v.recording.Lock()
	defer v.recording.Unlock()
	v.mu.Lock()
	state, ended := v.recorded, v.status == pb.VmStatus_VM_STATUS_STOPPED
	v.mu.Unlock()
	// Whoever removes the record has said before that the VM has ended.
	if ended || state == "" {
		return nil
	}
	return s.record(v, state)
}

// takeSubnet gives a VM a network for its containers, in which nothing of the
// host is: they reach the world by the VM's address.
func (s *Service) takeSubnet(v *vm) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nets.takeSubnet()
	if err != nil {
		return fmt.Errorf("a network for the VM's containers: %w", err)
	}
	v.mu.Lock()
	v.subnet = n
	v.mu.Unlock()
	return nil
}
