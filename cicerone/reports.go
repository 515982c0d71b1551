package cicerone

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

// A tremplinListener is what one VM's tremplin calls.
type tremplinListener struct {
	tpb.UnimplementedTremplinListenerServer
	v *vm
}

var done = &tpb.EmptyMessage{}

// allowed bounds what a VM's agent reports.
func (l tremplinListener) allowed() error {
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	switch {
	case l.v.s.closed:
		return status.Error(codes.Unavailable, errClosed.Error())
	case l.v.gone:
		return status.Error(codes.FailedPrecondition, "the VM has stopped")
	case !l.v.info.Containers:
		return status.Error(codes.FailedPrecondition, "this VM has no containers")
	case !l.v.reports.allow(time.Now()):
		return status.Error(codes.ResourceExhausted, "too many reports")
	}
	return nil
}

// told returns when the next run of this service knows what was reported. The
// guest reports it again if there is an error: a service that has begun to end
// leaves ends to the next one.
func (v *vm) told() error {
	v.saved()
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.s.closed {
		return status.Error(codes.Unavailable, errClosed.Error())
	}
	return nil
}

// TremplinReady answers when tremplin can be reached.
func (l tremplinListener) TremplinReady(ctx context.Context, _ *tpb.TremplinStartupInfo) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	v := l.v
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := v.s.cfg.Concierge.Dial(ctx, v.info.CID, vsock.PortTremplin)
	if err != nil {
		v.log.Warn("tremplin is ready, and cannot be reached", "err", err)
		return nil, status.Error(codes.Unavailable, "port 8890 cannot be reached")
	}
	c.Close()
	v.s.mu.Lock()
	if !v.found.IsZero() && time.Since(v.found) < foundFor {
		// It was found while it was about to say so.
		v.found = time.Time{}
		v.s.mu.Unlock()
		return done, nil
	}
	if v.ready {
		v.endOps(func(o *operation) bool { return !o.kind.ofAgent() && !o.outlives() }, "tremplin was started anew in the middle of it")
		// Who waits for the first one is not to be told that it failed.
		v.lxdErr, v.lxdFails = "tremplin was started anew", v.lxdFails+1
	}
	v.ready = true
	v.emit(SignalTremplinStarted, &pb.TremplinStartedSignal{VmName: v.info.Name, OwnerId: v.info.Owner.Word})
	v.notice()
	v.s.mu.Unlock()
	v.save()
	v.s.begin(v.tellConcierge)
	return done, nil
}

// foundFor is how long after tremplin was found its own word is of the same
// start.
const foundFor = 30 * time.Second

// foundTremplin is TremplinReady for one that was ready before this service
// was there to hear it.
func (v *vm) foundTremplin() {
	v.s.mu.Lock()
	if !v.ready {
		v.ready, v.found = true, time.Now()
		v.emit(SignalTremplinStarted, &pb.TremplinStartedSignal{VmName: v.info.Name, OwnerId: v.info.Owner.Word})
		v.notice()
	}
	v.s.mu.Unlock()
	v.save()
	v.tellConcierge()
}

// tellConcierge says that containers can be asked for, until it is heard.
func (v *vm) tellConcierge() {
	v.s.mu.Lock()
	telling := v.telling
	v.telling = true
	v.s.mu.Unlock()
	if telling {
		return
	}
	defer func() {
		v.s.mu.Lock()
		defer v.s.mu.Unlock()
		v.telling = false
	}()
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		ctx, cancel := context.WithTimeout(v.ctx, callTimeout)
		err := v.s.cfg.Concierge.TremplinReady(ctx, v.info.CID)
		cancel()
		if err == nil || v.ctx.Err() != nil {
			return
		}
		v.log.Warn("vm_concierge does not hear that tremplin is ready; it is told again", "err", err)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-v.ctx.Done():
			t.Stop()
			return
		}
	}
}

func (l tremplinListener) UpdateStartLxdStatus(_ context.Context, r *tpb.StartLxdProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.reportLxd(nil, r.GetStatus(), wire.Words(r.GetFailureReason()))
	return done, l.v.told()
}

// reportLxd tells how far a start of the container manager is, when need be only
// the one that was looked after. tremplin also starts it unasked, when it was
// started anew itself.
func (v *vm) reportLxd(only *operation, status tpb.StartLxdProgress_Status, why string) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.ops[opKey{opLxd, ""}]
	if v.gone || only != nil && o != only {
		return
	}
	st, goesOn := pb.StartLxdProgressSignal_UNKNOWN, false
	var err error
	switch status {
	case tpb.StartLxdProgress_STARTING:
		st, goesOn = pb.StartLxdProgressSignal_STARTING, true
	case tpb.StartLxdProgress_RECOVERING:
		st, goesOn = pb.StartLxdProgressSignal_RECOVERING, true
	case tpb.StartLxdProgress_STARTED:
		st = pb.StartLxdProgressSignal_STARTED
		v.lxdStarts++
	case tpb.StartLxdProgress_FAILED:
		st = pb.StartLxdProgressSignal_FAILED
		err = errors.New("the container manager did not start: " + why)
		v.lxdErr, v.lxdFails = why, v.lxdFails+1
	default:
		v.log.Debug("the start of the container manager is in no state that is known", "state", int32(status))
		return
	}
	if goesOn && o == nil {
		o = v.addOp(opLxd, "")
	}
	if o == nil {
		v.notice() // its end was told already
		return
	}
	o.last = time.Now()
	o.mark()
	o.accepted = true
	if goesOn {
		v.emit(SignalStartLxdProgress, v.lxdSignal(st, why))
		v.notice()
	} else {
		v.endOp(o, err, SignalStartLxdProgress, v.lxdSignal(st, why))
	}
}

func (v *vm) lxdSignal(st pb.StartLxdProgressSignal_Status, why string) *pb.StartLxdProgressSignal {
	return &pb.StartLxdProgressSignal{VmName: v.info.Name, OwnerId: v.info.Owner.Word, Status: st, FailureReason: why}
}

func (l tremplinListener) UpdateCreateStatus(_ context.Context, r *tpb.ContainerCreationProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.reportCreate(r.GetContainerName(), r.GetStatus(), r.GetDownloadProgress(), wire.Words(r.GetFailureReason()))
	return done, l.v.told()
}

// ended makes the error of an operation that a guest says has not succeeded.
func ended(ok bool, word, why string) error {
	switch {
	case ok:
		return nil
	case why == "":
		return errors.New(word)
	}
	return errors.New(word + ": " + why)
}

func (v *vm) reportCreate(name string, st tpb.ContainerCreationProgress_Status, percent int32, why string) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.op(opCreate, name)
	if o == nil {
		return
	}
	final := func(st pb.LxdContainerCreatedSignal_Status, err error) {
		if err == nil {
			v.named(name)
		}
		v.endOp(o, err, SignalLxdContainerCreated, &pb.LxdContainerCreatedSignal{VmName: v.info.Name, ContainerName: name,
			OwnerId: v.info.Owner.Word, Status: st, FailureReason: why})
	}
	switch st {
	case tpb.ContainerCreationProgress_DOWNLOADING:
		v.emit(SignalLxdContainerDownloading, &pb.LxdContainerDownloadingSignal{VmName: v.info.Name, ContainerName: name,
			OwnerId: v.info.Owner.Word, DownloadProgress: max(0, min(percent, 100))})
	case tpb.ContainerCreationProgress_CREATED:
		final(pb.LxdContainerCreatedSignal_CREATED, nil)
	case tpb.ContainerCreationProgress_DOWNLOAD_TIMED_OUT:
		final(pb.LxdContainerCreatedSignal_DOWNLOAD_TIMED_OUT, ended(false, "the download of the image timed out", why))
	case tpb.ContainerCreationProgress_CANCELLED:
		final(pb.LxdContainerCreatedSignal_CANCELLED, ended(false, "cancelled", why))
	case tpb.ContainerCreationProgress_FAILED:
		final(pb.LxdContainerCreatedSignal_FAILED, ended(false, "the container was not created", why))
	}
}

func (l tremplinListener) UpdateDeletionStatus(_ context.Context, r *tpb.ContainerDeletionProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.reportDelete(r.GetContainerName(), r.GetStatus(), wire.Words(r.GetFailureReason()))
	return done, l.v.told()
}

func (v *vm) reportDelete(name string, st tpb.ContainerDeletionProgress_Status, why string) {
	var unused *garcon.Client
	defer func() { closeUnused(unused) }()
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.op(opDelete, name)
	if o == nil {
		return
	}
	final := func(st pb.LxdContainerDeletedSignal_Status, err error) {
		v.endOp(o, err, SignalLxdContainerDeleted, &pb.LxdContainerDeletedSignal{VmName: v.info.Name, ContainerName: name,
			OwnerId: v.info.Owner.Word, Status: st, FailureReason: why})
	}
	switch st {
	case tpb.ContainerDeletionProgress_DELETED:
		unused = v.forget(name)
		final(pb.LxdContainerDeletedSignal_DELETED, nil)
	case tpb.ContainerDeletionProgress_CANCELLED:
		final(pb.LxdContainerDeletedSignal_CANCELLED, ended(false, "cancelled", why))
	case tpb.ContainerDeletionProgress_FAILED:
		final(pb.LxdContainerDeletedSignal_FAILED, ended(false, "the container was not deleted", why))
	}
}

func (l tremplinListener) UpdateStartStatus(ctx context.Context, r *tpb.ContainerStartProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.s.mu.Lock()
	o := l.v.ops[opKey{opStart, r.GetContainerName()}]
	l.v.s.mu.Unlock()
	if o != nil {
		// Not for long: a tremplin may report before it answers.
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		select {
		case <-o.replied:
		case <-o.done:
		case <-ctx.Done():
		}
	}
	l.v.reportStart(r.GetContainerName(), r.GetStatus(), wire.Words(r.GetFailureReason()))
	return done, l.v.told()
}

func (v *vm) reportStart(name string, st tpb.ContainerStartProgress_Status, why string) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.op(opStart, name)
	if o == nil {
		return
	}
	sig := &pb.LxdContainerStartingSignal{VmName: v.info.Name, ContainerName: name, OwnerId: v.info.Owner.Word, FailureReason: why}
	c := v.containers[name]
	if c != nil {
		sig.OsRelease = c.os
	}
	var err error
	switch st {
	case tpb.ContainerStartProgress_STARTING:
		sig.Status = pb.LxdContainerStartingSignal_STARTING
		v.emit(SignalLxdContainerStarting, sig)
		return
	case tpb.ContainerStartProgress_STARTED:
		sig.Status = pb.LxdContainerStartingSignal_STARTED
		v.named(name)
	case tpb.ContainerStartProgress_CANCELLED:
		sig.Status, err = pb.LxdContainerStartingSignal_CANCELLED, ended(false, "cancelled", why)
	case tpb.ContainerStartProgress_FAILED:
		sig.Status, err = pb.LxdContainerStartingSignal_FAILED, ended(false, "the container did not start", why)
	default:
		return
	}
	switch {
	case c == nil:
	case err == nil:
		c.left = time.Time{} // that was before
		c.hasStarted()
	default:
		c.pending = ""
	}
	v.endOp(o, err, SignalLxdContainerStarting, sig)
}

func (l tremplinListener) UpdateStopStatus(_ context.Context, r *tpb.ContainerStopProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.reportStop(r.GetContainerName(), r.GetStatus(), wire.Words(r.GetFailureReason()))
	return done, l.v.told()
}

func (v *vm) reportStop(name string, st tpb.ContainerStopProgress_Status, why string) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.op(opStop, name)
	if o == nil {
		return
	}
	sig := &pb.LxdContainerStoppingSignal{VmName: v.info.Name, ContainerName: name, OwnerId: v.info.Owner.Word, FailureReason: why}
	var err error
	switch st {
	case tpb.ContainerStopProgress_STOPPING:
		sig.Status = pb.LxdContainerStoppingSignal_STOPPING
		v.emit(SignalLxdContainerStopping, sig)
		return
	case tpb.ContainerStopProgress_STOPPED:
		sig.Status = pb.LxdContainerStoppingSignal_STOPPED
	case tpb.ContainerStopProgress_CANCELLED:
		sig.Status, err = pb.LxdContainerStoppingSignal_CANCELLED, ended(false, "cancelled", why)
	case tpb.ContainerStopProgress_FAILED:
		sig.Status, err = pb.LxdContainerStoppingSignal_FAILED, ended(false, "the container was not stopped", why)
	default:
		return
	}
	v.endOp(o, err, SignalLxdContainerStopping, sig)
}

func (l tremplinListener) UpdateExportStatus(_ context.Context, r *tpb.ContainerExportProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	v, name := l.v, r.GetContainerName()
	why := wire.Words(r.GetFailureReason())
	// The numbers of both enumerations are the same.
	sig := &pb.ExportLxdContainerProgressSignal{VmName: v.info.Name, ContainerName: name, OwnerId: v.info.Owner.Word,
		Status: pb.ExportLxdContainerProgressSignal_Status(r.GetStatus()), FailureReason: why, ProgressSpeed: r.GetProgressSpeed(),
		TotalInputFiles: r.GetTotalInputFiles(), TotalInputBytes: r.GetTotalInputBytes(),
		InputFilesStreamed: r.GetInputFilesStreamed(), InputBytesStreamed: r.GetInputBytesStreamed(), BytesExported: r.GetBytesExported()}
	switch r.GetStatus() {
	case tpb.ContainerExportProgress_DONE, tpb.ContainerExportProgress_FAILED, tpb.ContainerExportProgress_CANCELLED:
		ok := r.GetStatus() == tpb.ContainerExportProgress_DONE
		v.reportTransfer(opExport, name, SignalExportLxdContainerProgress, sig, true, ended(ok, "the container was not exported", why))
	case tpb.ContainerExportProgress_EXPORTING_TAR, tpb.ContainerExportProgress_EXPORTING_COMPRESS, tpb.ContainerExportProgress_EXPORTING_DOWNLOAD,
		tpb.ContainerExportProgress_EXPORTING_PACK, tpb.ContainerExportProgress_EXPORTING_STREAMING:
		v.reportTransfer(opExport, name, SignalExportLxdContainerProgress, sig, false, nil)
	}
	return done, l.v.told()
}

func (l tremplinListener) UpdateImportStatus(_ context.Context, r *tpb.ContainerImportProgress) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	v, name := l.v, r.GetContainerName()
	why := wire.Words(r.GetFailureReason())
	sig := &pb.ImportLxdContainerProgressSignal{VmName: v.info.Name, ContainerName: name, OwnerId: v.info.Owner.Word,
		Status: pb.ImportLxdContainerProgressSignal_Status(r.GetStatus()), FailureReason: why,
		ProgressPercent: min(r.GetProgressPercent(), 100), ProgressSpeed: r.GetProgressSpeed(),
		ArchitectureDevice: wire.Text(r.GetArchitectureDevice(), 64), ArchitectureContainer: wire.Text(r.GetArchitectureContainer(), 64),
		AvailableSpace: r.GetDiskSpaceAvailableBytes(), MinRequiredSpace: r.GetDiskSpaceRequiredBytes()}
	switch r.GetStatus() {
	case tpb.ContainerImportProgress_DONE, tpb.ContainerImportProgress_FAILED, tpb.ContainerImportProgress_CANCELLED,
		tpb.ContainerImportProgress_FAILED_ARCHITECTURE, tpb.ContainerImportProgress_FAILED_SPACE:
		ok := r.GetStatus() == tpb.ContainerImportProgress_DONE
		v.reportTransfer(opImport, name, SignalImportLxdContainerProgress, sig, true, ended(ok, "the container was not imported", why))
	case tpb.ContainerImportProgress_IMPORTING_UPLOAD, tpb.ContainerImportProgress_IMPORTING_UNPACK:
		v.reportTransfer(opImport, name, SignalImportLxdContainerProgress, sig, false, nil)
	}
	return done, l.v.told()
}

// reportTransfer relays how an export or import goes. One with a stream to the
// caller's file has ended when that has too.
func (v *vm) reportTransfer(kind opKind, name, signal string, sig proto.Message, final bool, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	o := v.op(kind, name)
	switch {
	case o == nil:
	case !final:
		if p, ok := sig.(*pb.ImportLxdContainerProgressSignal); ok && o.stream != nil && p.Status == pb.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD {
			p.ProgressPercent = o.stream.upTo(p.ProgressPercent)
		}
		v.emit(signal, sig)
	case o.stream != nil && err == nil:
		if o.stream.finish() {
			v.s.beginLocked(func() { v.finishStream(o, signal, sig) })
		}
	default:
		if kind == opImport && err == nil {
			v.named(name)
		} else if o.lost {
			err = errors.New(lostWhy)
			signal, sig = v.failure(o, lostWhy)
		}
		v.endOp(o, err, signal, sig)
	}
}

// ContainerShutdown is how tremplin tells that a container has stopped.
func (l tremplinListener) ContainerShutdown(_ context.Context, r *tpb.ContainerShutdownInfo) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	l.v.shutdown(r.GetContainerName(), false)
	return done, nil
}

// UpdateListeningPorts is heard and not used: ports are not forwarded.
func (l tremplinListener) UpdateListeningPorts(context.Context, *tpb.ListeningPortInfo) (*tpb.EmptyMessage, error) {
	if err := l.allowed(); err != nil {
		return nil, err
	}
	return done, nil
}

// shutdown says that a container has stopped, or only that its agent goes.
func (v *vm) shutdown(name string, leaving bool) {
	v.s.mu.Lock()
	var unused *garcon.Client
	if c := v.containers[name]; c != nil {
		if v.ops[opKey{opStart, name}] == nil {
			c.hasStarted()
		}
		c.left = time.Time{}
		if leaving {
			c.left = time.Now()
		}
		unused = v.down(c, "the container has stopped")
	}
	v.s.mu.Unlock()
	closeUnused(unused)
	v.save()
}
