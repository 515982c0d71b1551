package maitred

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// A reluctant host refuses the first calls.
type reluctant struct {
	pb.UnimplementedStartupListenerServer
	refusals, calls atomic.Int32
}

func (r *reluctant) VmReady(context.Context, *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	if r.calls.Add(1) <= r.refusals.Load() {
		return nil, status.Error(codes.FailedPrecondition, "this VM is not known yet")
	}
	return &pb.EmptyMessage{}, nil
}

func startHost(t *testing.T, host *reluctant) *bufconn.Listener {
	t.Helper()
	face := grpc.NewServer()
	pb.RegisterStartupListenerServer(face, host)
	l := bufconn.Listen(64 << 10)
	done := make(chan error, 1)
	go func() { done <- face.Serve(l) }()
	t.Cleanup(func() { face.Stop(); <-done })
	return l
}

func TestAnnounceUntilAccepted(t *testing.T) {
	host := &reluctant{}
	host.refusals.Store(2)
	l := startHost(t, host)
	var dials atomic.Int32
	a := announcer{log: quiet(), dial: func(ctx context.Context) (net.Conn, error) {
		if dials.Add(1) <= 2 {
			return nil, errors.New("nobody listens")
		}
		return l.DialContext(ctx)
	}}
	a.run(t.Context())
	if got := host.calls.Load(); got != 3 {
		t.Errorf("the host was called %d times, want 3: two refusals and one success", got)
	}
	if got := dials.Load(); got != 5 {
		t.Errorf("%d dials, want 5", got)
	}
}

func TestAnnounceEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tried := make(chan struct{}, 1)
	a := announcer{log: quiet(), dial: func(context.Context) (net.Conn, error) {
		select {
		case tried <- struct{}{}:
		default:
		}
		return nil, errors.New("nobody listens")
	}}
	done := make(chan struct{})
	go func() { a.run(ctx); close(done) }()
	<-tried
	cancel()
	<-done
}

func TestReadyPort(t *testing.T) {
	if got := readyPort(core.Params{}); got != 7777 {
		t.Errorf("port %d, want 7777", got)
	}
	if got := readyPort(core.Params{ListenPort: 7000}); got != 7000 {
		t.Errorf("port %d, want 7000", got)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"maitred"}, {"maitred", "help"}, {"x"}} {
		if got := runCommand(args); got != 2 {
			t.Errorf("%q exits with %d, want 2", args, got)
		}
	}
	// Nothing of this kind may reach PID 1.
	for _, args := range [][]string{{"poweroff", "--reboot"}, {"maitred", "shutdown", "+10"}, {"/run/auberge/bin/shutdown", "-r", "now"}} {
		if got := runCommand(args); got != 1 {
			t.Errorf("%q exits with %d, want 1", args, got)
		}
	}
}
