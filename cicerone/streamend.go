package cicerone

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
)

// streamFailed gives tremplin a moment to say itself why, unless it was the
// caller's file, and ends the operation then. What somebody has cancelled ends
// when tremplin has tidied up, and was not broken.
func (v *vm) streamFailed(o *operation, st *stream, err error) {
	var own fileError
	if !errors.As(err, &own) && !st.cancelled() && v.endsWithin(o, streamWhy) {
		return
	}
	if st.cancelled() {
		if !v.endsWithin(o, streamCancel) {
			v.cancelled(o)
		}
		return
	}
	v.fail(o, err)
	ctx, cancel := context.WithTimeout(v.ctx, callTimeout)
	defer cancel()
	v.cancelTransfer(ctx, o.kind, o.container)
}

const (
	lostWhy   = "vm_cicerone was started anew in the middle of it"
	lostPause = time.Second
)

// endLost ends an export or import whose stream went with an earlier run of this
// service. tremplin may not notice: vhost-device-vsock does not tell a guest that
// is about to write that nobody reads any more. It is told, however long that
// takes, and only then is the container free for the next try.
func (v *vm) endLost(o *operation) {
	for {
		ctx, cancel := context.WithTimeout(v.ctx, callTimeout)
		found, err := v.cancelTransfer(ctx, o.kind, o.container)
		cancel()
		if err == nil {
			if !found || !v.endsWithin(o, streamCancel) {
				v.fail(o, errors.New(lostWhy))
			}
			return
		}
		if v.endsWithin(o, lostPause) {
			return
		}
	}
}

// endsWithin waits for the end of an operation, or of its VM.
func (v *vm) endsWithin(o *operation, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.done:
	case <-v.ctx.Done():
	case <-t.C:
		return false
	}
	return true
}

// asked notes that tremplin is asked to cancel, before it can close the stream;
// answered what it says to that.
func (s *stream) asked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels++
}

func (s *stream) answered(ends bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels--
	s.unwanted = s.unwanted || ends
}

func (s *stream) cancelled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unwanted || s.cancels > 0
}

// finish says whether tremplin's word that it is done is the first one.
func (s *stream) finish() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.finishing
	s.finishing = true
	return first
}

func (s *stream) isFinishing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finishing
}

// outlives says that tremplin has no more to do with an export: the caller's
// disk takes what is all there. mu is held.
func (o *operation) outlives() bool {
	return o.kind == opExport && o.stream != nil && o.stream.isFinishing() && o.stream.at.Load() == atDisk
}

// finishStream ends an operation that tremplin says is done when the caller's
// file has everything too. A VM that has said so is not waited for for long;
// the caller's file and its disk are, until somebody cancels that.
func (v *vm) finishStream(o *operation, signal string, sig proto.Message) {
	st := o.stream
	t := time.NewTicker(streamEnd)
	defer t.Stop()
	for moved := st.moved.Load(); ; {
		select {
		case <-st.copied:
			v.endStream(o, signal, sig)
			return
		case <-o.done:
			return
		case <-v.ctx.Done():
			return
		case <-t.C:
		}
		at, now := st.at.Load(), st.moved.Load()
		if now == moved && (at == atGuest || o.kind == opImport) {
			v.fail(o, errors.New("the VM says that it is done, and the stream does not end"))
			return
		}
		v.stillStreams(o, sig, now != moved || at == atDisk)
		moved = now
	}
}

// stillStreams tells that an operation goes on of which the VM says no more;
// with alive, it is nothing to give up either.
func (v *vm) stillStreams(o *operation, sig proto.Message, alive bool) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.ops[o.key()] != o {
		return
	}
	if alive {
		o.last = time.Now()
	}
	if p, ok := sig.(*pb.ExportLxdContainerProgressSignal); ok {
		p = proto.CloneOf(p)
		p.Status = pb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING
		v.emit(SignalExportLxdContainerProgress, p)
	}
}

// endStream ends an operation at both ends of its stream.
func (v *vm) endStream(o *operation, signal string, sig proto.Message) {
	if err := o.stream.failed(); err != nil {
		if o.stream.cancelled() {
			v.cancelled(o)
		} else {
			v.fail(o, err)
		}
		return
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if o.kind == opImport {
		v.named(o.container)
	}
	v.endOp(o, nil, signal, sig)
}

// cancelled ends an operation that somebody does not want any more. It is false
// when that has ended already.
func (v *vm) cancelled(o *operation) bool {
	err := errors.New("the " + string(o.kind) + " was cancelled")
	n, w := v.info.Name, v.info.Owner.Word
	signal, msg := SignalExportLxdContainerProgress, proto.Message(&pb.ExportLxdContainerProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
		Status: pb.ExportLxdContainerProgressSignal_CANCELLED, FailureReason: err.Error()})
	if o.kind == opImport {
		signal, msg = SignalImportLxdContainerProgress, &pb.ImportLxdContainerProgressSignal{VmName: n, ContainerName: o.container, OwnerId: w,
			Status: pb.ImportLxdContainerProgressSignal_CANCELLED, FailureReason: err.Error()}
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.ops[o.key()] != o {
		return false
	}
	v.endOp(o, err, signal, msg)
	return true
}

// cancelOp ends an export or import: tremplin does, unless it has done its part
// and the caller's file is waited for.
func (v *vm) cancelOp(ctx context.Context, kind opKind, name string) (found bool, err error) {
	v.s.mu.Lock()
	o := v.ops[opKey{kind, name}]
	var st *stream
	if o != nil {
		st = o.stream
	}
	v.s.mu.Unlock()
	if st == nil {
		return v.cancelTransfer(ctx, kind, name)
	}
	waits := func() bool { return kind == opExport && st.isFinishing() && v.cancelled(o) }
	if waits() {
		return true, nil
	}
	st.asked()
	found, err = v.cancelTransfer(ctx, kind, name)
	st.answered(found || err != nil) // an answer that is lost may be either
	if err == nil && !found && waits() {
		return true, nil
	}
	return found, err
}
