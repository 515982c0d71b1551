package cicerone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

// An opKind is what an operation does. tremplin does those on containers and
// starts their manager, garcon does those inside one.
type opKind string

const (
	opLxd       opKind = "start-lxd" // of no container
	opCreate    opKind = "create"
	opDelete    opKind = "delete"
	opStart     opKind = "start"
	opStop      opKind = "stop"
	opExport    opKind = "export"
	opImport    opKind = "import"
	opInstall   opKind = "install"
	opUninstall opKind = "uninstall"
	opAnsible   opKind = "ansible"
)

// moves says whether it may have a stream.
func (k opKind) moves() bool { return k == opExport || k == opImport }

func (k opKind) ofAgent() bool { return k == opInstall || k == opUninstall || k == opAnsible }

const (
	// silence ends an operation of which nothing was heard for so long;
	// garcon gives a playbook one hour.
	silence = 2 * time.Hour
	// misses of an agent in a row end its operations.
	misses = 3
)

type opKey struct {
	kind      opKind
	container string
}

// An operation is something long that an agent does. Its end is told exactly
// once: whoever takes it out of the VM's table tells it. mu guards it.
type operation struct {
	kind      opKind
	container string
	uuid      string
	// begun says that the caller was told so, or the guest has reported: from
	// then on signals tell the rest. Before, the caller's answer does.
	begun bool
	// accepted says that the guest does it: before, it ends with this service.
	accepted bool
	// stream is the caller's file, lost one that the service has forgotten.
	stream *stream
	lost   bool
	last   time.Time // the last report

	// replied is closed when tremplin has answered to a start: what it reports
	// may be here before its answer, and waits for that.
	replied chan struct{}
	// started is closed when it has begun or ended, done when it has ended.
	started, done chan struct{}
	// err is why it failed. exists and running say that there was nothing to
	// do.
	err             error
	exists, running bool
}

func newOperation(kind opKind, container string) *operation {
	return &operation{kind: kind, container: container, last: time.Now(), replied: make(chan struct{}), started: make(chan struct{}), done: make(chan struct{})}
}

func (o *operation) key() opKey { return opKey{o.kind, o.container} }

// beginOp makes an operation, or returns the one that goes on.
func (v *vm) beginOp(kind opKind, container string) (o *operation, fresh bool, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.gone {
		return nil, false, v.errGone()
	}
	k := opKey{kind, container}
	if o = v.ops[k]; o != nil {
		if kind == opStop || kind == opDelete {
			o.mark() // who comes later is told that it goes on, and waits for the signal
		}
		return o, false, nil
	}
	if len(v.ops) >= maxOperations {
		return nil, false, fmt.Errorf("VM %q has %d operations going on, the most that may", v.info.Name, maxOperations)
	}
	return v.addOp(kind, container), true, nil
}

// addOp makes an operation; mu is held.
func (v *vm) addOp(kind opKind, container string) *operation {
	o := newOperation(kind, container)
	v.ops[o.key()] = o
	v.saveSoon()
	v.s.beginLocked(func() { v.watch(o) })
	return o
}

// forgetOp takes an operation back of which nobody has heard.
func (v *vm) forgetOp(o *operation) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if !o.begun {
		v.endOp(o, nil, "", nil)
	}
}

// op returns an operation of which the guest reports; mu is held. What nobody
// asked for is nobody's.
func (v *vm) op(kind opKind, container string) *operation {
	o := v.ops[opKey{kind, container}]
	if o == nil {
		v.log.Debug("a report about nothing that was asked for", "operation", kind)
		return nil
	}
	o.last = time.Now()
	o.mark()
	o.accepted = true
	return o
}

// mark says that it has begun; mu is held.
func (o *operation) mark() {
	if !o.begun {
		o.begun = true
		select {
		case <-o.started:
		default:
			close(o.started)
		}
	}
}

// accepted says that the guest does it.
func (v *vm) accepted(o *operation) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.ops[o.key()] == o {
		o.mark()
		o.accepted = true
		v.saveSoon()
	}
}

// endOp takes an operation out of the table and tells with what it ended; mu is
// held. When the service ends, operations go on: the next one tells.
func (v *vm) endOp(o *operation, err error, signal string, msg proto.Message) {
	if v.ops[o.key()] != o || v.s.closed {
		return
	}
	delete(v.ops, o.key())
	o.err = err
	if o.begun && msg != nil {
		v.emit(signal, msg)
	}
	select {
	case <-o.started:
	default:
		close(o.started)
	}
	close(o.done)
	if o.stream != nil {
		o.stream.cancel()
	}
	v.notice()
	v.saveSoon()
}

// fail ends an operation with its signal of failure.
func (v *vm) fail(o *operation, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	signal, msg := v.failure(o, err.Error())
	v.endOp(o, err, signal, msg)
}

// endOps fails those of the operations that match; mu is held.
func (v *vm) endOps(match func(*operation) bool, why string) {
	var some []*operation
	for _, o := range v.ops {
		if match(o) {
			some = append(some, o)
		}
	}
	slices.SortFunc(some, func(a, b *operation) int {
		return cmp.Or(cmp.Compare(a.container, b.container), cmp.Compare(a.kind, b.kind))
	})
	for _, o := range some {
		signal, msg := v.failure(o, why)
		v.endOp(o, errors.New(why), signal, msg)
	}
}

// failure is the signal that says that an operation failed.
func (v *vm) failure(o *operation, why string) (string, proto.Message) {
	n, w := v.info.Name, v.info.Owner.Word
	switch o.kind {
	case opLxd:
		return SignalStartLxdProgress, v.lxdSignal(pb.StartLxdProgressSignal_FAILED, why)
	case opCreate:
		return SignalLxdContainerCreated, &pb.LxdContainerCreatedSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.LxdContainerCreatedSignal_FAILED, FailureReason: why}
	case opDelete:
		return SignalLxdContainerDeleted, &pb.LxdContainerDeletedSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.LxdContainerDeletedSignal_FAILED, FailureReason: why}
	case opStart:
		return SignalLxdContainerStarting, &pb.LxdContainerStartingSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.LxdContainerStartingSignal_FAILED, FailureReason: why}
	case opStop:
		return SignalLxdContainerStopping, &pb.LxdContainerStoppingSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.LxdContainerStoppingSignal_FAILED, FailureReason: why}
	case opExport:
		return SignalExportLxdContainerProgress, &pb.ExportLxdContainerProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.ExportLxdContainerProgressSignal_FAILED, FailureReason: why}
	case opImport:
		return SignalImportLxdContainerProgress, &pb.ImportLxdContainerProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.ImportLxdContainerProgressSignal_FAILED, FailureReason: why}
	case opInstall:
		return SignalInstallLinuxPackageProgress, &pb.InstallLinuxPackageProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.InstallLinuxPackageProgressSignal_FAILED, FailureDetails: why, CommandUuid: o.uuid}
	case opUninstall:
		return SignalUninstallPackageProgress, &pb.UninstallPackageProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.UninstallPackageProgressSignal_FAILED, FailureDetails: why}
	case opAnsible:
		return SignalApplyAnsiblePlaybookProgress, &pb.ApplyAnsiblePlaybookProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.ApplyAnsiblePlaybookProgressSignal_FAILED, FailureDetails: why}
	}
	return "", nil
}

// watch looks after an operation until it ends: an agent that dies and does
// not come back reports nothing, and a report may have been lost while this
// service was away.
func (v *vm) watch(o *operation) {
	t := time.NewTicker(v.s.cfg.WatchInterval)
	defer t.Stop()
	for missed := 0; ; {
		select {
		case <-o.done:
			return
		case <-v.ctx.Done():
			return
		case <-t.C:
		}
		v.s.mu.Lock()
		quiet, accepted := time.Since(o.last), o.accepted
		v.s.mu.Unlock()
		if quiet > silence {
			v.fail(o, fmt.Errorf("nothing was heard of it for %s", silence))
			return
		}
		there, sure := v.listens(o)
		switch {
		case there:
			missed = 0
		case sure:
			missed++
		}
		if missed >= misses {
			v.fail(o, errors.New("the guest's agent has gone, and does not come back"))
			return
		}
		// Before the guest does it, what there is was there before.
		if there && accepted && quiet > misses*v.s.cfg.WatchInterval {
			v.conclude(o)
		}
	}
}

// listens says whether the agent that does an operation is there, and whether
// it would have been seen: not in a VM that is suspended, and not while
// vm_concierge is away.
func (v *vm) listens(o *operation) (there, sure bool) {
	port := vsock.PortTremplin
	if o.kind.ofAgent() {
		v.s.mu.Lock()
		if c := v.containers[o.container]; c != nil {
			port = c.port
		}
		v.s.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(v.ctx, connectTimeout)
	defer cancel()
	c, err := v.s.cfg.Concierge.Dial(ctx, v.info.CID, port)
	if err == nil {
		c.Close()
		return true, true
	}
	if ctx.Err() != nil {
		return false, false
	}
	list, err := v.s.cfg.Concierge.ListVMs(ctx)
	if err != nil {
		return false, false
	}
	for _, i := range list {
		if same(i, v.info) {
			return false, !i.Suspended
		}
	}
	return false, false
}

// conclude ends an operation of which no end was heard, when its result is
// there.
func (v *vm) conclude(o *operation) {
	if o.kind.ofAgent() || o.kind.moves() {
		return
	}
	ctx, cancel := context.WithTimeout(v.ctx, callTimeout)
	defer cancel()
	if o.kind == opLxd {
		r, err := v.tremplin.StartLxd(ctx, &tpb.StartLxdRequest{})
		if err == nil && r.GetStatus() == tpb.StartLxdResponse_ALREADY_RUNNING {
			v.reportLxd(o, tpb.StartLxdProgress_STARTED, "")
		}
		return
	}
	r, err := v.tremplin.GetContainerInfo(ctx, &tpb.GetContainerInfoRequest{ContainerName: o.container})
	if err != nil {
		return
	}
	runs, stopped, missing := r.GetStatus() == tpb.GetContainerInfoResponse_RUNNING,
		r.GetStatus() == tpb.GetContainerInfoResponse_STOPPED, r.GetStatus() == tpb.GetContainerInfoResponse_NOT_FOUND
	switch {
	case o.kind == opCreate && (runs || stopped):
		v.reportCreate(o.container, tpb.ContainerCreationProgress_CREATED, 0, "")
	case o.kind == opDelete && missing:
		v.reportDelete(o.container, tpb.ContainerDeletionProgress_DELETED, "")
	case o.kind == opStart && runs:
		v.reportStart(o.container, tpb.ContainerStartProgress_STARTED, "")
	case o.kind == opStop && (stopped || missing):
		v.reportStop(o.container, tpb.ContainerStopProgress_STOPPED, "")
	}
}
