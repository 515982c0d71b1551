package concierge

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/crash"
	"github.com/auberge-vm/auberge/vsock"
)

// StartVm starts a VM and returns when its guest is configured. A VM that
// runs already is a success; one that is being started is waited for. The
// start goes on when the caller leaves. The files belong to the request's fds,
// in their order, and stay the caller's.
func (s *Service) StartVm(ctx context.Context, sub policy.Subject, req *pb.StartVmRequest, files []*os.File) (*pb.StartVmResponse, error) {
	if err := policy.CheckName(req.Name); err != nil {
		return nil, err
	}
	limit := s.cfg.Quota.For(sub.Owner.UID).VMs
	for {
		v, mine, err := s.enter(sub, req, limit)
		if err != nil {
			return nil, err
		}
		if mine {
			s.begin(v, sub, req, files)
		}
		select {
		case <-v.started:
		case <-ctx.Done():
			return nil, fmt.Errorf("VM %q is still starting: %w", req.Name, context.Cause(ctx))
		}
		v.mu.Lock()
		err, leaving, termina := v.startErr, v.asked, v.termina
		v.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case (leaving || v.ended()) && !mine:
			// It is on its way out; a new one starts when it has gone.
			select {
			case <-v.gone:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("VM %q is still stopping: %w", req.Name, context.Cause(ctx))
			}
		}
		info := v.info()
		return &pb.StartVmResponse{Success: true, VmInfo: info, Status: info.Status,
			MountResult: mountResult(termina.Mount), FreeBytes: termina.FreeBytes, FreeBytesHasValue: termina.HasFree}, nil
	}
}

func mountResult(r guestlink.MountResult) pb.StartVmResponse_MountResult {
	switch r {
	case guestlink.MountSuccess:
		return pb.StartVmResponse_SUCCESS
	case guestlink.MountPartialDataLoss:
		return pb.StartVmResponse_PARTIAL_DATA_LOSS
	case guestlink.MountFailure:
		return pb.StartVmResponse_FAILURE
	}
	return pb.StartVmResponse_UNKNOWN
}

// enter finds the VM in the table or makes an entry for it, in one step, so
// that two starts at once make one VM.
func (s *Service) enter(sub policy.Subject, req *pb.StartVmRequest, limit uint64) (v *vm, mine bool, err error) {
	k := keyOf(sub.Owner, req.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, errors.New("the service is shutting down")
	}
	if v := s.vms[k]; v != nil {
		return v, false, nil
	}
	if s.hostDown {
		return nil, false, fmt.Errorf("%w: VM %q can be started when it is up again, or when the shutdown is called off", ErrHostShutdown, req.Name)
	}
	if err := s.vmQuota(k.uid, limit); err != nil {
		return nil, false, err
	}
	net, err := s.nets.take()
	if err != nil {
		return nil, false, err
	}
	id := newID()
	ctx, abort := context.WithCancelCause(s.quit)
	v = &vm{
		key: k, owner: sub.Owner, id: id, dir: filepath.Join(s.vmsDir(), id),
		cid: s.takeCID(), net: net, typ: vmType(req), status: pb.VmStatus_VM_STATUS_STARTING,
		log:   s.log.With("vm", req.Name, "owner", sub.Owner.Word, "id", id),
		abort: abort, starting: ctx,
		stopping: make(chan struct{}), started: make(chan struct{}), gone: make(chan struct{}), turn: make(chan struct{}, 1), containersUp: make(chan struct{}),
	}
	s.vms[k] = v
	s.running.Add(1) // for begin: once closed is set, nothing begins
	return v, true, nil
}

// newID returns a short random word: it names the VM's directory, in which
// socket addresses have to fit 108 bytes.
func newID() string {
	var b [5]byte
	rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

func vmType(req *pb.StartVmRequest) pb.VmInfo_VmType {
	if req.StartTermina {
		return pb.VmInfo_TERMINA
	}
	return req.VmType
}

// begin starts the VM's own goroutine, which may outlive the call: it works
// with its own descriptors.
func (s *Service) begin(v *vm, sub policy.Subject, req *pb.StartVmRequest, files []*os.File) {
	own, err := dupAll(files)
	op := s.beginOperation(opStart, v.owner, v.key.name, nil)
	start := func(ctx context.Context) error {
		defer v.abort(nil)
		defer s.settleMemory(v)
		defer closeFiles(own)
		if err != nil {
			return err
		}
		p, err := s.prepare(ctx, v, sub, req, own)
		if err == nil {
			err = s.boot(ctx, v, p, op)
			p.close()
		}
		if err != nil && errors.Is(context.Cause(ctx), errStopped) {
			return errStopped
		}
		return err
	}
	go func() {
		defer s.running.Done()
		s.run(v.starting, v, start, op)
	}()
}

// boot makes a VM of a plan. On failure nothing of it runs any more.
func (s *Service) boot(ctx context.Context, v *vm, p *plan, op *operation) (err error) {
	if err := s.reserveDisks(v, p); err != nil {
		return err
	}
	v.mu.Lock()
	v.memory, v.cpus, v.disk, v.sparse, v.token, v.image = p.spec.MemoryMiB<<20, p.spec.CPUs, p.disk, p.sparse, p.token, p.image
	if p.tremplin {
		v.tremplin = tremplinAwaited
	}
	v.mu.Unlock()
	s.changed(v)
	if err := s.makeDir(v); err != nil {
		return err
	}
	// From here on the VM's end is told, by the next service if not by this.
	if err := s.writeRecord(v, recordStarting); err != nil {
		return err
	}
	s.emit(v, "VmStartingUpSignal", &pb.VmStartingUpSignal{Name: v.key.name, OwnerId: v.owner.Word,
		VmType: v.typ, Cid: int64(v.cid)})
	v.announced = true
	crash.At(crash.StartAnnounced)
	begin := time.Now()
	m, err := s.cfg.Launcher.Launch(ctx, v.dir, &p.spec, p.files)
	if err != nil {
		return fmt.Errorf("start the VM: %w", err)
	}
	p.close()
	launched := time.Since(begin)
	v.mu.Lock()
	v.machine, v.processes = m, m.Processes()
	v.mu.Unlock()
	crash.At(crash.Launched)
	s.progress(op, "booting", 10)
	defer func() {
		if err != nil {
			s.abandon(ctx, v)
		}
	}()
	// Should its supervisor fall silent, others have to know its processes.
	if err := s.writeRecord(v, recordStarting); err != nil {
		return err
	}
	if err := s.connect(v); err != nil {
		return err
	}
	if err := s.waitReady(ctx, v, p.timeout); err != nil {
		return s.withConsole(v, err)
	}
	crash.At(crash.GuestReady)
	s.progress(op, "configuring", 60)
	ready := time.Since(begin)
	if err := s.configure(ctx, v, p); err != nil {
		// A guest that ended under our calls says more than the calls do.
		if v.machineEnded() {
			err = fmt.Errorf("the VM ended while it was being set up: %s", v.machine.Exit().Message)
		}
		return s.withConsole(v, err)
	}
	crash.At(crash.GuestConfigured)
	// make bench reads these.
	v.log.Info("the guest is set up", "launched", launched, "ready", ready, "configured", time.Since(begin))
	v.mu.Lock()
	v.since = time.Now()
	v.mu.Unlock()
	return s.writeRecord(v, recordRunning)
}

// abandon ends a VM whose start has failed.
func (s *Service) abandon(ctx context.Context, v *vm) {
	if errors.Is(context.Cause(ctx), errStopped) {
		s.changed(v)
		s.emitStopping(v)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*exitGrace)
	defer cancel()
	if err := v.machine.Stop(ctx, "the start was given up"); err != nil {
		v.log.Error("stop a VM that did not start", "err", err)
		v.machine.Kill()
		endsWithin(context.Background(), v.machine, exitGrace)
	}
}

// makeDir creates the VM's directory, which only this process and the VMs'
// user can enter.
func (s *Service) makeDir(v *vm) error {
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return fmt.Errorf("create the VM's directory: %w", err)
	}
	crash.At(crash.DirMade)
	if s.cfg.VMGroup < 0 {
		return nil
	}
	if err := os.Chown(v.dir, -1, s.cfg.VMGroup); err != nil {
		return fmt.Errorf("give the VM's directory to its group: %w", err)
	}
	if err := os.Chmod(v.dir, 0o770); err != nil {
		return fmt.Errorf("give the VM's directory to its group: %w", err)
	}
	crash.At(crash.DirShared)
	return nil
}

// connect prepares the link to the guest's agent before the guest speaks.
func (s *Service) connect(v *vm) error {
	l, err := s.endpoint(v.machine, vsock.PortStartupListener)
	if err != nil {
		return err
	}
	link, err := maitred.New(l, s.dialer(v.machine, vsock.PortMaitred), v.log, maitred.WithInstallListener(func(st guestlink.InstallState) {
		s.emit(v, "VmInstallStateSignal", &pb.VmInstallStateSignal{State: pb.VmInstallStateSignal_State(st.State),
			InProgressStep: pb.VmInstallStateSignal_Step(st.Step), InProgressPercent: st.Percent, FailedReason: st.Reason})
	}), maitred.WithObserver(func(c guestlink.Call) { s.guestCalled(v, c) }))
	if err != nil {
		l.Close()
		return err
	}
	v.mu.Lock()
	v.agent = link
	v.mu.Unlock()
	s.collect(v)
	return s.openPassages(v)
}

// waitReady waits for the guest's VmReady.
func (s *Service) waitReady(ctx context.Context, v *vm, timeout time.Duration) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-v.agent.Ready():
		return nil
	case <-v.machine.Done():
		return fmt.Errorf("the VM ended before its agent reported: %s", v.machine.Exit().Message)
	case <-t.C:
		return fmt.Errorf("the guest's agent did not report within %v", timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// withConsole adds the guest's last words to an error.
func (s *Service) withConsole(v *vm, err error) error {
	if errors.Is(err, errStopped) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), exitGrace)
	defer cancel()
	console, cerr := v.machine.Console(ctx)
	if cerr != nil {
		v.log.Warn("read the guest's console", "err", cerr)
	}
	if tail := vmm.LastLines(console, consoleLines); tail != "" {
		return fmt.Errorf("%w; last lines of the guest's console:\n%s", err, tail)
	}
	return fmt.Errorf("%w; the guest wrote nothing to its console", err)
}

// consoleLines is how much of the console an error shows.
const consoleLines = 15

// configure brings a guest that is up into the state that was asked for.
func (s *Service) configure(ctx context.Context, v *vm, p *plan) error {
	v.told = s.changesSoFar()
	if err := s.acquaint(ctx, v, p.spec.Network); err != nil {
		return err
	}
	for _, m := range p.mounts {
		if err := within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.Mount(ctx, m) }); err != nil {
			return err
		}
	}
	s.notifyStarted(v)
	if err := s.startTermina(ctx, v, p); err != nil {
		return err
	}
	if p.token != "" {
		// Without it only the agents that come with containers are missing.
		err := within(ctx, agentTimeout, func(ctx context.Context) error {
			return v.agent.ConfigureContainerGuest(ctx, p.token, p.user)
		})
		if err != nil {
			v.log.Warn("the guest has no token", "err", err)
		}
	}
	return nil
}

// acquaint tells a guest what it has to know of its network and its host, all
// at once: the round trips are a good part of a start.
func (s *Service) acquaint(ctx context.Context, v *vm, n *vmm.Network) error {
	var network, resolver, clock error
	var wg sync.WaitGroup
	if n != nil {
		wg.Go(func() {
			network = within(ctx, agentTimeout, func(ctx context.Context) error {
				return v.agent.ConfigureNetwork(ctx, networkOf(*n))
			})
		})
		wg.Go(func() { resolver = s.setResolver(ctx, v, n) })
	}
	wg.Go(func() {
		clock = within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.SetTime(ctx, time.Now()) })
	})
	wg.Go(func() { s.refreshTimezone(ctx, v) })
	wg.Wait()
	return cmp.Or(network, resolver, clock)
}

func (s *Service) startTermina(ctx context.Context, v *vm, p *plan) error {
	if p.termina == nil {
		return nil
	}
	return within(ctx, terminaTimeout, func(ctx context.Context) error {
		t := *p.termina
		if v.subnet.IsValid() {
			// The first address is the bridge's.
			t.Subnet = netip.PrefixFrom(v.subnet.Addr().Next(), v.subnet.Bits()).String()
		}
		r, err := v.agent.StartTermina(ctx, t)
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.termina = r
		v.mu.Unlock()
		if r.Mount == guestlink.MountFailure {
			return errors.New("the VM's stateful disk cannot be mounted")
		}
		if free, err := freeSpace(s.disksDir()); err == nil {
			s.tellSpace(ctx, v, free)
		}
		return nil
	})
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
