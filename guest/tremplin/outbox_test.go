package tremplin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// An awayHost is one that cannot be reached until it is back.
type awayHost struct {
	pb.TremplinListenerClient
	mu   sync.Mutex
	back bool
	got  []string
}

func (h *awayHost) hear(what string) (*pb.EmptyMessage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.back {
		return nil, status.Error(codes.Unavailable, "nobody is there")
	}
	h.got = append(h.got, what)
	return &pb.EmptyMessage{}, nil
}

// outboxTo is an outbox to a host that needs no connection.
func outboxTo(t *testing.T, h pb.TremplinListenerClient) *outbox {
	t.Helper()
	o, err := newOutbox(quiet(), func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is dialled") })
	if err != nil {
		t.Fatal(err)
	}
	o.host = h
	return o
}

// Whoever comes back after hours hears how everything ended, and nothing that is
// not so any more.
func TestEndsAreKeptUntilTheHostIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &awayHost{}
		o := outboxTo(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { o.run(ctx) })
		o.create("a", pb.ContainerCreationProgress_DOWNLOADING, 1, "")
		o.shutdown("b")
		synctest.Wait() // it has been tried
		o.create("a", pb.ContainerCreationProgress_CREATED, 100, "")
		o.deletion("b", pb.ContainerDeletionProgress_DELETED, "")
		o.start("c", pb.ContainerStartProgress_STARTING, "")
		o.start("c", pb.ContainerStartProgress_FAILED, "no")
		o.stop("d", pb.ContainerStopProgress_STOPPED, "")
		o.export(&pb.ContainerExportProgress{ContainerName: "e", Status: pb.ContainerExportProgress_EXPORTING_STREAMING})
		o.export(&pb.ContainerExportProgress{ContainerName: "e", Status: pb.ContainerExportProgress_DONE})
		o.imported(&pb.ContainerImportProgress{ContainerName: "f", Status: pb.ContainerImportProgress_IMPORTING_UNPACK})
		o.imported(&pb.ContainerImportProgress{ContainerName: "f", Status: pb.ContainerImportProgress_FAILED_SPACE})
		o.shutdown("d")
		o.shutdown("g")
		o.runs("g") // again
		// The clock is synctest's, on which hours take no time and nothing depends on
		// the machine.
		time.Sleep(5 * time.Hour)
		h.mu.Lock()
		h.back = true
		h.mu.Unlock()
		o.flush(t.Context())
		want := []string{"shutdown b", "a CREATED", "b DELETED", "c STARTING", "c FAILED", "d STOPPED", "e EXPORTING_STREAMING", "e DONE",
			"f IMPORTING_UNPACK", "f FAILED_SPACE", "shutdown d"}
		if !slices.Equal(h.got, want) {
			t.Errorf("the host heard %q, not %q", h.got, want)
		}
		cancel()
		running.Wait()
	})
}

// Too many notices cost the oldest of those that tell no end.
func TestEndsAreTheLastToGo(t *testing.T) {
	h := &awayHost{back: true}
	o := outboxTo(t, h)
	o.start("first", pb.ContainerStartProgress_STARTED, "")
	for i := range 2 * maxNotices {
		o.stop(fmt.Sprint(i), pb.ContainerStopProgress_STOPPING, "")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { o.run(ctx) })
	o.flush(t.Context())
	if len(h.got) != maxNotices || h.got[0] != "first STARTED" || h.got[1] != fmt.Sprint(maxNotices+1, " STOPPING") {
		t.Errorf("the host heard %d, first %q", len(h.got), h.got[:min(2, len(h.got))])
	}
	cancel()
	running.Wait()
}

func (h *awayHost) UpdateCreateStatus(_ context.Context, p *pb.ContainerCreationProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) UpdateDeletionStatus(_ context.Context, p *pb.ContainerDeletionProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) UpdateStartStatus(_ context.Context, p *pb.ContainerStartProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) UpdateStopStatus(_ context.Context, p *pb.ContainerStopProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) UpdateExportStatus(_ context.Context, p *pb.ContainerExportProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) UpdateImportStatus(_ context.Context, p *pb.ContainerImportProgress, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear(p.ContainerName + " " + p.Status.String())
}

func (h *awayHost) ContainerShutdown(_ context.Context, p *pb.ContainerShutdownInfo, _ ...grpc.CallOption) (*pb.EmptyMessage, error) {
	return h.hear("shutdown " + p.ContainerName)
}
