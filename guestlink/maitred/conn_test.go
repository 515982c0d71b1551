package maitred_test

import (
	"context"
	"sync"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// No connection is kept to a guest that is not called, and none is lost to a
// call: not in the middle of one, and the next one makes its own.
func TestConnectionEndsWithTheCalls(t *testing.T) {
	g := &guest{connections: connections{ended: make(chan struct{}, 100)}}
	g.kernelVersion = func(context.Context) (*pb.GetKernelVersionResponse, error) {
		return &pb.GetKernelVersionResponse{KernelRelease: "6.12"}, nil
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	g.setTime = func(context.Context, *pb.SetTimeRequest) (*pb.EmptyMessage, error) {
		close(inside)
		<-leave
		return &pb.EmptyMessage{}, nil
	}
	p := newPair(t, g)
	ask := func() {
		t.Helper()
		if release, _, err := p.KernelVersion(t.Context()); err != nil || release != "6.12" {
			t.Errorf("release %q, %v", release, err)
		}
	}
	hangsUp := func() {
		t.Helper()
		select {
		case <-g.ended:
		case <-time.After(patience):
			t.Fatal("a connection without calls is kept")
		}
	}
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(ask)
	}
	calls.Wait()
	hangsUp()

	calls.Go(func() {
		if err := p.SetTime(t.Context(), time.Now()); err != nil {
			t.Error(err)
		}
	})
	<-inside
	// That another call ends beside it is no reason.
	ask()
	close(leave)
	calls.Wait()
	hangsUp()
	ask()
	hangsUp()
	if n := len(g.ended); n != 0 {
		t.Errorf("%d connections more than bursts of calls", n)
	}
}
