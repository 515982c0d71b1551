package cicerone

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guestlink/crash"
	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/tremplin"
	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

// Resync looks at all VMs: those that are new are taken up, those that went
// are dropped with their signals.
func (s *Service) Resync(ctx context.Context) error {
	if err := turn(ctx, s.takeTurn); err != nil {
		return err
	}
	defer func() { <-s.takeTurn }()
	list, err := s.cfg.Concierge.ListVMs(ctx)
	if err != nil {
		return fmt.Errorf("ask vm_concierge for the VMs that run: %w", err)
	}
	there := map[key]VM{}
	for _, i := range list {
		there[keyOf(i.Owner, i.Name)] = i
	}
	s.mu.Lock()
	var went []*vm
	for k, v := range s.vms {
		if i, ok := there[k]; !ok || !same(i, v.info) {
			went = append(went, v)
		}
	}
	s.mu.Unlock()
	for _, v := range went {
		s.drop(v, whileAway)
	}
	s.mu.Lock()
	ghosts := map[key]record{}
	for k, r := range s.before {
		if i, ok := there[k]; !ok || !same(i, r.vm()) {
			ghosts[k] = r
			delete(s.before, k)
		}
	}
	s.mu.Unlock()
	for _, k := range slices.SortedFunc(maps.Keys(ghosts), func(a, b key) int { return strings.Compare(a.name, b.name) }) {
		s.lay(ghosts[k])
	}
	var all sync.WaitGroup
	for _, i := range list {
		all.Go(func() {
			if _, err := s.takeUp(ctx, i.CID, true); err != nil {
				s.log.Warn("a VM cannot be looked after", "vm", i.Name, "cid", i.CID, "err", err)
			}
		})
	}
	all.Wait()
	return nil
}

const whileAway = "the VM stopped while vm_cicerone or vm_concierge was away"

// lay tells what has ended with a VM that was known before this service ran.
func (s *Service) lay(r record) {
	if r.CID == 0 {
		return
	}
	ghost := s.newVM(r.vm())
	ghost.restore(r)
	s.drop(ghost, whileAway)
}

// NotifyVmStarted says: look at this VM. It comes when a VM starts, and again
// when either daemon was started anew.
func (s *Service) NotifyVmStarted(ctx context.Context, sub policy.Subject, req *pb.NotifyVmStartedRequest) (*vmtoolspb.EmptyMessage, error) {
	if err := policy.CheckName(req.GetVmName()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	k, cid := keyOf(sub.Owner, req.GetVmName()), req.GetCid()
	if err := turn(ctx, s.takeTurn); err != nil {
		return nil, err
	}
	defer func() { <-s.takeTurn }()
	if cid == 0 {
		list, err := s.cfg.Concierge.ListVMs(ctx)
		if err != nil {
			return nil, fmt.Errorf("VM %q was announced without a CID, and vm_concierge cannot be asked for it: %w", req.GetVmName(), err)
		}
		for _, i := range list {
			if keyOf(i.Owner, i.Name) == k {
				cid = i.CID
			}
		}
		if cid == 0 {
			return nil, fmt.Errorf("%w: vm_concierge has no VM %q of owner %s, which was announced without a CID", ErrNotFound, req.GetVmName(), sub.Owner.Word)
		}
	}
	v, err := s.takeUp(ctx, cid, false)
	if err == nil && v.key != k {
		err = fmt.Errorf("%w: CID %d is VM %q of owner %s, not %q", ErrInvalid, cid, v.info.Name, v.info.Owner.Word, req.GetVmName())
	}
	if err != nil {
		return nil, err
	}
	return &vmtoolspb.EmptyMessage{}, nil
}

// NotifyVmStopping says that what a VM's programs report as failures from now
// on is of its shutdown.
func (s *Service) NotifyVmStopping(_ context.Context, sub policy.Subject, req *pb.NotifyVmStoppingRequest) (*vmtoolspb.EmptyMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vms[keyOf(sub.Owner, req.GetVmName())]; v != nil {
		v.stopping = true
	}
	return &vmtoolspb.EmptyMessage{}, nil
}

// NotifyVmStopped drops a VM, and tells what that ends.
func (s *Service) NotifyVmStopped(_ context.Context, sub policy.Subject, req *pb.NotifyVmStoppedRequest) (*vmtoolspb.EmptyMessage, error) {
	s.mu.Lock()
	s.stops++
	v := s.vms[keyOf(sub.Owner, req.GetVmName())]
	s.mu.Unlock()
	if v == nil {
		s.log.Info("a VM that is not known has stopped", "vm", req.GetVmName(), "owner", sub.Owner.Word)
	} else {
		s.drop(v, "the VM has stopped")
	}
	return &vmtoolspb.EmptyMessage{}, nil
}

// drop takes a VM out of the table and tells what that ends. It does not wait
// for the connections, which end soon.
func (s *Service) drop(v *vm, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// When the service ends, all that is told by the next one, once.
	if v.gone || s.closed {
		return
	}
	v.endOps(func(*operation) bool { return true }, why)
	var unused []*garcon.Client
	for _, c := range v.sorted() {
		unused = append(unused, v.down(c, why))
	}
	v.gone = true
	clear(v.containers)
	if s.vms[v.key] == v {
		delete(s.vms, v.key)
	}
	v.notice()
	v.end()
	s.beginLocked(func() {
		v.save()
		closeUnused(unused...)
		v.hangUp()
		s.prune(v.key.uid)
	})
}

// takeUp looks after the VM with a CID from now on, at endpoints that are
// opened anew. With probe its tremplin may be up already, and won't say so
// again. The turn is the caller's.
func (s *Service) takeUp(ctx context.Context, cid uint32, probe bool) (*vm, error) {
	for range 5 {
		s.mu.Lock()
		stops := s.stops
		s.mu.Unlock()
		info, ends, err := s.cfg.Concierge.OpenEndpoints(ctx, cid)
		if err != nil {
			return nil, fmt.Errorf("open the endpoints of the VM with CID %d: %w", cid, err)
		}
		k := keyOf(info.Owner, info.Name)
		r := s.known(k)
		s.mu.Lock()
		old := s.vms[k]
		earlier, ok := s.before[k]
		switch {
		case s.closed:
			s.mu.Unlock()
			ends.close()
			return nil, errClosed
		case s.stops != stops:
			// It may be this VM that has stopped meanwhile.
			s.mu.Unlock()
			ends.close()
			continue
		case ok && !same(earlier.vm(), info):
			delete(s.before, k)
			s.mu.Unlock()
			ends.close()
			s.lay(earlier)
			continue
		case old != nil && !same(old.info, info):
			s.mu.Unlock()
			ends.close()
			s.drop(old, "the VM was started anew")
			continue
		case old != nil:
			over := old.serve(ends)
			ready := old.ready
			s.mu.Unlock()
			for _, o := range over {
				o.Close()
			}
			if ready {
				s.begin(old.tellConcierge)
			}
			return old, nil
		}
		delete(s.before, k)
		v := s.newVM(info)
		v.restore(r)
		if v.containerless() {
			if c, err := v.known(defaultContainer); err == nil && c.token != info.Token {
				c.pending = info.Token
			}
		}
		s.vms[k] = v
		v.serve(ends)
		for _, o := range v.ops {
			s.beginLocked(func() { v.watch(o) })
		}
		look := probe || v.ready
		s.beginLocked(func() { v.lookAround(look) })
		s.mu.Unlock()
		v.save()
		return v, nil
	}
	return nil, fmt.Errorf("VMs stop all the time: the one with CID %d was not taken up", cid)
}

func (e Endpoints) close() {
	for _, l := range []net.Listener{e.Tremplin, e.Crash, e.Container} {
		if l != nil {
			l.Close()
		}
	}
}

// serve hears the VM at these endpoints from now on; mu is held. What was
// begun at those before them goes on; those before these are returned to be
// closed.
func (v *vm) serve(e Endpoints) (over []*wire.Server) {
	over = v.retired
	for _, s := range v.servers {
		s.Retire()
	}
	v.retired, v.servers = v.servers, nil
	if e.Tremplin != nil {
		v.servers = append(v.servers, tremplin.Serve(e.Tremplin, tremplinListener{v: v}, v.log))
	}
	if e.Crash != nil {
		v.servers = append(v.servers, crash.Serve(e.Crash, v.allowCrash, v.isStopping, v.log))
	}
	if e.Container != nil {
		v.servers = append(v.servers, garcon.Serve(e.Container, containerListener{v: v}, v.log))
	}
	return over
}

func (v *vm) allowCrash() bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.crashes.allow(time.Now())
}

func (v *vm) isStopping() bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.stopping || v.gone
}

// lookAround finds out what of a VM's record is still so. With probe it looks for
// tremplin too.
func (v *vm) lookAround(probe bool) {
	v.s.mu.Lock()
	v.endOps(func(o *operation) bool { return o.lost && !o.kind.moves() }, lostWhy)
	for _, o := range v.ops {
		if o.lost {
			v.s.beginLocked(func() { v.endLost(o) })
		}
	}
	var running []*container
	for _, c := range v.sorted() {
		if c.running {
			running = append(running, c)
		}
	}
	v.s.mu.Unlock()
	if v.info.Suspended {
		return // what can't answer now may be there all the same
	}
	if probe && v.info.Containers {
		ctx, cancel := context.WithTimeout(v.ctx, connectTimeout)
		c, err := v.s.cfg.Concierge.Dial(ctx, v.info.CID, vsock.PortTremplin)
		cancel()
		if err == nil {
			c.Close()
			v.foundTremplin()
		}
	}
	for _, c := range running {
		v.verify(c)
	}
}

// verify finds out whether a container that ran still does. One whose agent
// does not answer counts as not running until the agent reports again.
func (v *vm) verify(c *container) {
	v.s.mu.Lock()
	client, reported := c.garcon, c.reported
	v.s.mu.Unlock()
	if client == nil {
		return
	}
	stopped := false
	if v.info.Containers {
		ctx, cancel := context.WithTimeout(v.ctx, 2*connectTimeout)
		r, err := v.tremplin.GetContainerInfo(ctx, &tpb.GetContainerInfoRequest{ContainerName: c.name})
		cancel()
		stopped = err == nil && (r.GetStatus() == tpb.GetContainerInfoResponse_STOPPED || r.GetStatus() == tpb.GetContainerInfoResponse_NOT_FOUND)
	}
	if !stopped {
		if v.answers(client) {
			return
		}
	}
	v.s.mu.Lock()
	var unused *garcon.Client
	if v.ctx.Err() == nil && c.garcon == client && c.reported == reported {
		c.left = time.Now()
		unused = v.down(c, "the container's agent did not answer after vm_cicerone was started anew")
	}
	v.s.mu.Unlock()
	closeUnused(unused)
	v.save()
}

// answers tells whether an agent does. While vm_concierge is away nobody can be
// reached: it is waited for.
func (v *vm) answers(client *garcon.Client) bool {
	t := time.NewTicker(v.s.cfg.WatchInterval)
	defer t.Stop()
	for {
		_, err := v.session(v.ctx, client)
		if err == nil {
			return true
		}
		ctx, cancel := context.WithTimeout(v.ctx, connectTimeout)
		_, away := v.s.cfg.Concierge.ListVMs(ctx)
		cancel()
		if away == nil {
			_, err := v.session(v.ctx, client) // it may have come back only now
			return err == nil
		}
		select {
		case <-t.C:
		case <-v.ctx.Done():
			return false
		}
	}
}
