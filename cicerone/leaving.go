package cicerone

import (
	"context"
	"fmt"
	"time"

	"github.com/auberge-vm/auberge/guestlink/wire"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

const (
	// leaveTime is how long a system may take to go down after its agent has:
	// systemd's own patience with one service, and a little for the rest.
	leaveTime = 100 * time.Second
	// leavePause is the time between two looks at a container that goes down.
	leavePause = time.Second
)

// askStart has tremplin start a container. To tremplin one runs until the last
// of its processes has ended, and its agent is among the first of them: one
// that goes down is waited for and started then.
func (v *vm) askStart(ctx context.Context, o *operation, req *tpb.StartContainerRequest) (*tpb.StartContainerResponse, error) {
	for {
		v.s.mu.Lock()
		leaves := v.leaves(o.container)
		v.s.mu.Unlock()
		r, err := v.tremplin.StartContainer(ctx, req)
		if err != nil {
			return nil, wire.Explain("start the container", err)
		}
		if r.GetStatus() != tpb.StartContainerResponse_RUNNING || !leaves {
			return r, nil
		}
		v.log.Info("a container is on its way down and is started when it has stopped", "container", o.container)
		stopped, err := v.waitDown(ctx, o)
		if err != nil || !stopped {
			return r, err
		}
	}
}

// leaves tells whether a container may be on its way down; mu is held.
func (v *vm) leaves(name string) bool {
	c := v.containers[name]
	return c != nil && !c.left.IsZero() && time.Since(c.left) < leaveTime
}

// waitDown tells whether a container whose agent has gone has stopped. It has
// not when there is an agent again, or when nothing has come of it in time: the
// agent alone may have been ended.
func (v *vm) waitDown(ctx context.Context, o *operation) (stopped bool, err error) {
	t := time.NewTicker(leavePause)
	defer t.Stop()
	for {
		v.s.mu.Lock()
		c, leaves, gone, changed := v.containers[o.container], v.leaves(o.container), v.gone, v.changed
		heard := c == nil || !c.running && c.left.IsZero()
		v.s.mu.Unlock()
		switch {
		case gone:
			return false, v.errGone()
		case heard || !leaves:
			return heard, nil
		}
		select {
		case <-changed:
			continue
		case <-t.C:
		case <-ctx.Done():
			return false, fmt.Errorf("container %q is on its way down and has not stopped: %w", o.container, context.Cause(ctx))
		}
		// The word of it may have been lost.
		r, err := v.tremplin.GetContainerInfo(ctx, &tpb.GetContainerInfoRequest{ContainerName: o.container})
		if err == nil && (r.GetStatus() == tpb.GetContainerInfoResponse_STOPPED || r.GetStatus() == tpb.GetContainerInfoResponse_NOT_FOUND) {
			return true, nil
		}
	}
}
