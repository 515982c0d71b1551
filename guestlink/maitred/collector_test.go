package maitred_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/vsock"
)

// collect starts a collector and returns it with the path on which its guest
// reaches it.
func collect(t *testing.T, sink guestlink.LogSink) (c *maitred.Collector, path string, log *syncbuf.Buffer) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "vm.vsock_9999"), &syncbuf.Buffer{}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c = maitred.Collect(vsock.NewListener(l, vsock.Addr{VM: "abc", CID: 33}, 9999), sink, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(c.Close)
	return c, path, log
}

func shipper(t *testing.T, path string) (pb.LogCollectorClient, *grpc.ClientConn) {
	t.Helper()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return pb.NewLogCollectorClient(c), c
}

func TestCollector(t *testing.T) {
	type call struct {
		Kernel  bool
		Records []guestlink.LogRecord
	}
	calls := make(chan call, 1)
	_, path, _ := collect(t, func(_ context.Context, kernel bool, records []guestlink.LogRecord) error {
		calls <- call{kernel, records}
		return nil
	})
	c, conn := shipper(t, path)
	req := &pb.LogRequest{Records: []*pb.LogRecord{
		{Severity: pb.LogSeverity_WARNING, Timestamp: &pb.Timestamp{Seconds: 1795000000, Nanos: 5}, Content: []byte("a\xff")},
		{Severity: -7, Timestamp: &pb.Timestamp{Seconds: -1 << 63, Nanos: -1 << 31}},
		{},
	}}
	want := call{Kernel: true, Records: []guestlink.LogRecord{
		{Severity: 5, Time: time.Unix(1795000000, 5), Content: []byte("a\xff")},
		{Severity: -7, Time: time.Unix(-1<<63, -1<<31)}, {},
	}}
	if _, err := c.CollectKernelLogs(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, <-calls); diff != "" {
		t.Error(diff)
	}
	if _, err := c.CollectUserLogs(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	want.Kernel = false
	if diff := cmp.Diff(want, <-calls); diff != "" {
		t.Error(diff)
	}
	// What belongs to other ports is not served here.
	for _, method := range []string{vmReady, "/vm_tools.Maitred/Shutdown", "/vm_tools.LogCollector/Other"} {
		if err := conn.Invoke(t.Context(), method, &pb.EmptyMessage{}, &pb.EmptyMessage{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// What is too much is refused before it gets anywhere, and a good call is
// served afterwards.
func TestCollectorIsBounded(t *testing.T) {
	got := make(chan int, 1)
	_, path, _ := collect(t, func(_ context.Context, _ bool, records []guestlink.LogRecord) error {
		got <- len(records)
		return nil
	})
	c, _ := shipper(t, path)
	empty := slices.Repeat([]*pb.LogRecord{{}}, 4097)
	if _, err := c.CollectUserLogs(t.Context(), &pb.LogRequest{Records: empty}); err == nil || !strings.Contains(err.Error(), "more than 4096 records") {
		t.Errorf("4,097 records: %v", err)
	}
	big := []*pb.LogRecord{{Content: make([]byte, 257<<10)}}
	if _, err := c.CollectUserLogs(t.Context(), &pb.LogRequest{Records: big}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("257 KiB: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 100<<10))
	if _, err := c.CollectUserLogs(ctx, &pb.LogRequest{}); err == nil {
		t.Error("headers of 100 KiB were taken")
	}
	if _, err := c.CollectUserLogs(t.Context(), &pb.LogRequest{Records: empty[:4096]}); err != nil {
		t.Errorf("4,096 records: %v", err)
	}
	if n := <-got; n != 4096 {
		t.Errorf("the first records that came were %d", n)
	}
}

// A guest has a few connections with a few calls each; the rest waits.
func TestCollectorConnections(t *testing.T) {
	entered, release := make(chan struct{}, 100), make(chan struct{})
	_, path, _ := collect(t, func(ctx context.Context, _ bool, _ []guestlink.LogRecord) error {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	})
	const connections, streams = 4, 2
	done := make(chan error, 100)
	for range connections + 1 {
		c, _ := shipper(t, path)
		for range streams + 1 {
			go func() {
				_, err := c.CollectUserLogs(t.Context(), &pb.LogRequest{})
				done <- err
			}()
		}
	}
	for range connections * streams {
		<-entered
	}
	select {
	case <-entered:
		t.Errorf("call %d is served", connections*streams+1)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	for range connections * (streams + 1) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestCollectorRefuses(t *testing.T) {
	_, path, _ := collect(t, func(context.Context, bool, []guestlink.LogRecord) error { return errors.New("too much") })
	c, _ := shipper(t, path)
	if _, err := c.CollectUserLogs(t.Context(), &pb.LogRequest{}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "too much") {
		t.Errorf("refused with %v", err)
	}
}

// Close lets calls that end be answered, ends those that do not, and its
// listener.
func TestCollectorClose(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	collector, path, log := collect(t, func(ctx context.Context, kernel bool, _ []guestlink.LogRecord) error {
		entered <- struct{}{}
		if kernel {
			<-leave
			return nil
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	one, _ := shipper(t, path)
	two, _ := shipper(t, path)
	answered, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := one.CollectKernelLogs(t.Context(), &pb.LogRequest{})
		answered <- err
	}()
	go func() {
		_, err := two.CollectUserLogs(t.Context(), &pb.LogRequest{})
		ended <- err
	}()
	<-entered
	<-entered
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		collector.Close()
	}()
	for { // until the listener is closed, which nothing else shows
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		conn.Close()
	}
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("a call that was about to end: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("a call survived Close")
	}
	<-closed
	collector.Close()
	if log.String() != "" {
		t.Errorf("an orderly end was logged: %s", log)
	}
}

// Connections on which nothing comes make place for others, and a shipper
// that has something to say again is heard.
func TestCollectorEndsIdleConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm.vsock_9999")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := maitred.CollectIdle(l, func(context.Context, bool, []guestlink.LogRecord) error { return nil },
		slog.New(slog.DiscardHandler), time.Millisecond)
	t.Cleanup(c.Close)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var shippers []pb.LogCollectorClient
	for range 3 * 4 { // several times as many as may be connected
		s, _ := shipper(t, path)
		shippers = append(shippers, s)
		if _, err := s.CollectUserLogs(ctx, &pb.LogRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range shippers {
		if _, err := s.CollectUserLogs(ctx, &pb.LogRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Error(err)
		}
	}
}
