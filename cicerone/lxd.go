package cicerone

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// answerTimeout is how long a caller waits for an operation to begin, when the
// container manager has to be started first: clients give up after 25 s.
const answerTimeout = 15 * time.Second

// tooLong is for reasons, names and paths of callers that end up in messages
// to guests.
const maxArgument = 4096

func checkArguments(args ...string) error {
	for _, a := range args {
		if len(a) > maxArgument {
			return fmt.Errorf("%w: an argument of %d bytes is longer than %d", ErrInvalid, len(a), maxArgument)
		}
	}
	return nil
}

// startLxd returns when the container manager runs.
func (v *vm) startLxd(ctx context.Context, reset bool) error {
	if err := v.needContainers(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lxdTimeout, errors.New("the container manager did not start in time"))
	defer cancel()
	for {
		v.s.mu.Lock()
		fails, starts := v.lxdFails, v.lxdStarts
		v.s.mu.Unlock()
		r, err := v.askLxd(ctx, reset)
		if err != nil {
			return err
		}
		switch r.GetStatus() {
		case tpb.StartLxdResponse_ALREADY_RUNNING:
			return nil
		case tpb.StartLxdResponse_STARTING:
		default:
			return fmt.Errorf("start the container manager: the guest says: %s", wire.Words(r.GetFailureReason()))
		}
		// Asked again now and then, in case its word was lost.
		some, stop := context.WithTimeout(ctx, v.s.cfg.WatchInterval)
		err = v.wait(some, func() (bool, error) {
			if v.lxdFails != fails {
				return false, fmt.Errorf("start the container manager: %s", v.lxdErr)
			}
			return v.lxdStarts != starts, nil
		})
		again := some.Err() != nil && ctx.Err() == nil
		stop()
		if err == nil || !again {
			return err
		}
		reset = false
	}
}

// askLxd calls StartLxd, when need be after tremplin has come up.
func (v *vm) askLxd(ctx context.Context, reset bool) (*tpb.StartLxdResponse, error) {
	for first := true; ; first = false {
		v.s.mu.Lock()
		ready := v.ready
		v.s.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, callTimeout)
		r, err := v.tremplin.StartLxd(call, &tpb.StartLxdRequest{ResetLxdDb: reset})
		cancel()
		if err == nil {
			return r, nil
		}
		if !first || ready || status.Code(err) != codes.Unavailable {
			return nil, wire.Explain("start the container manager", err)
		}
		some, stop := context.WithTimeoutCause(ctx, callTimeout, errors.New("tremplin, which manages containers, has not come up in the VM"))
		err = v.wait(some, func() (bool, error) { return v.ready, nil })
		stop()
		if err != nil {
			return nil, err
		}
	}
}

// StartLxd starts the container manager; StartLxdProgress tells the rest.
func (s *Service) StartLxd(ctx context.Context, sub policy.Subject, req *pb.StartLxdRequest) (*pb.StartLxdResponse, error) {
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	if v.containerless() {
		return &pb.StartLxdResponse{Status: pb.StartLxdResponse_ALREADY_RUNNING}, nil
	}
	if err := v.needContainers(); err != nil {
		return nil, err
	}
	o, fresh, err := v.beginOp(opLxd, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.StartLxd(ctx, &tpb.StartLxdRequest{ResetLxdDb: req.GetResetLxdDb()})
	if err == nil && r.GetStatus() == tpb.StartLxdResponse_STARTING {
		v.lxdGoesOn(o)
	} else if fresh {
		v.forgetOp(o)
	}
	if err != nil {
		return nil, wire.Explain("start the container manager", err)
	}
	resp := &pb.StartLxdResponse{FailureReason: wire.Words(r.GetFailureReason())}
	switch r.GetStatus() {
	case tpb.StartLxdResponse_STARTING:
		resp.Status = pb.StartLxdResponse_STARTING
	case tpb.StartLxdResponse_ALREADY_RUNNING:
		resp.Status = pb.StartLxdResponse_ALREADY_RUNNING
	default:
		resp.Status = pb.StartLxdResponse_FAILED
	}
	return resp, nil
}

// lxdGoesOn says that a start goes on, also when who began to ask for it has
// gone meanwhile.
func (v *vm) lxdGoesOn(o *operation) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if now := v.ops[o.key()]; now != nil {
		o = now
	} else if !o.begun && !v.gone {
		o = v.addOp(opLxd, "")
	} else {
		return // its end was told already
	}
	o.mark()
	o.accepted = true
	v.saveSoon()
}

// answered waits until an operation has begun or ended, but not too long.
func (v *vm) answered(ctx context.Context, o *operation) {
	t := time.NewTimer(answerTimeout)
	defer t.Stop()
	select {
	case <-o.started:
	case <-t.C:
	case <-ctx.Done():
	case <-v.s.quit.Done():
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.ops[o.key()] == o {
		o.mark()
	}
}

// outcome is how an operation stands, and whether signals tell of it.
func (v *vm) outcome(o *operation) (ended, begun bool, err error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.ops[o.key()] != o, o.begun, o.err
}
