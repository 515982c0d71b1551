package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// startsAtOnce is how many StartVm calls are in progress at a time.
const startsAtOnce = 16

// newCrowdBench starts a bench whose VMs are stand-ins.
func (o *options) newCrowdBench(ctx context.Context) (*bench, *crowd, error) {
	// Short, because socket addresses are; the testbed's directory is not
	// known before the service has been started.
	path := filepath.Join(o.crowdDir, "crowd.sock")
	c, err := newCrowd(path)
	if err != nil {
		return nil, nil, err
	}
	b, err := o.newBench(ctx, "--accel", "tcg", "--supervisor", filepath.Join(o.bin, "bench/standin"), "--vsock-backend", path)
	if err != nil {
		c.close()
		return nil, nil, err
	}
	return b, c, nil
}

// benchMany measures the service with many VMs, which are stand-ins.
func benchMany(ctx context.Context, o *options, t *table) error {
	b, crowd, err := o.newCrowdBench(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	defer crowd.close()
	pid := b.concierge.Cmd.Process.Pid

	// The first one makes what there is only once.
	if _, err := b.start("first"); err != nil {
		return errors.Join(err, crowd.err())
	}
	before, err := pss(pid)
	if err != nil {
		return err
	}
	files, tasks := descriptors(pid), threads(pid)
	if err := b.smallAll(o.vms); err != nil {
		return err
	}
	begin := time.Now()
	if err := b.startMany(o.vms); err != nil {
		return errors.Join(err, crowd.err())
	}
	took := time.Since(begin)
	t.figure(fmt.Sprintf("StartVm with stand-ins for supervisor and guest, %d at once", startsAtOnce), "per second",
		float64(o.vms)/took.Seconds(), none)

	if err := b.measureCalls(o.vms+1, t); err != nil {
		return err
	}
	after, err := settled(ctx, pid)
	if err != nil {
		return err
	}
	n := float64(o.vms)
	t.figure(fmt.Sprintf("vm_concierge, growth of PSS per VM, over %d VMs", o.vms), "KiB", (after-before)/n, atMost(64))
	t.note("With %d VMs vm_concierge has %.1f descriptors per VM open (the limit of this machine is %s in all) and %d threads (%d before).",
		o.vms, float64(descriptors(pid)-files)/n, fileLimit(pid), threads(pid), tasks)
	return crowd.err()
}

// measureCalls measures calls while n VMs run.
func (b *bench) measureCalls(n int, t *table) error {
	var resp pb.ListVmsResponse
	if err := b.call("ListVms", &pb.ListVmsRequest{}, &resp); err != nil {
		return err
	}
	if len(resp.Vms) != n {
		return fmt.Errorf("ListVms lists %d VMs of %d", len(resp.Vms), n)
	}
	c, err := b.dialRaw()
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for _, m := range []struct {
		method, what string
		req          proto.Message
	}{
		{"ListVms", fmt.Sprintf("ListVms of %d VMs, %d bytes, p50", n, proto.Size(&resp)), &pb.ListVmsRequest{}},
		{"GetVmInfo", fmt.Sprintf("GetVmInfo among %d VMs, p50", n), &pb.GetVmInfoRequest{Name: "first"}},
	} {
		least := 0
		if m.method == "ListVms" {
			least = proto.Size(&resp)
		}
		us, err := p50(func() error {
			size, err := c.concierge(m.method, m.req)
			if err == nil && size < least {
				err = fmt.Errorf("%s: an answer of %d bytes, not of %d", m.method, size, least)
			}
			return err
		})()
		if err != nil {
			return err
		}
		t.figure(m.what, "us", us, none)
	}
	return nil
}

// settled waits until a process gives no more memory back and returns what it
// keeps.
func settled(ctx context.Context, pid int) (float64, error) {
	const quiet = 10 * time.Second
	least, err := pss(pid)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for since := time.Now(); err == nil && time.Since(since) < quiet; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		var now float64
		if now, err = pss(pid); now < 0.99*least {
			least, since = now, time.Now()
		}
	}
	return least, err
}

// smallAll gives the VMs of startMany little memory, which those that start at
// the same time have to share.
func (b *bench) smallAll(n int) error {
	for i := range n {
		if err := b.small(fmt.Sprintf("vm%d", i), 0); err != nil {
			return err
		}
	}
	return nil
}

// startMany starts n VMs.
func (b *bench) startMany(n int) error {
	next := make(chan int)
	var wg sync.WaitGroup
	errs := make(chan error, startsAtOnce)
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	for range startsAtOnce {
		wg.Go(func() {
			for i := range next {
				if _, err := b.start(fmt.Sprintf("vm%d", i)); err != nil {
					errs <- err
					cancel()
					return
				}
			}
		})
	}
feed:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return b.ctx.Err()
	}
}
