package wire_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// Nothing is kept of calls that are refused, however late they would end.
func TestRefusedCallsAreForgotten(t *testing.T) {
	h, _, path := serve(t, wire.Limits{Connections: 8, Calls: 1, Message: 1 << 20, Fields: 100, Timeout: patience})
	held := make(chan error, 1)
	go func() {
		_, err := dial(t, path).SendFailureReport(t.Context(), &pb.FailureReport{})
		held <- err
	}()
	<-h.inside
	ctx, cancel := context.WithTimeout(t.Context(), 1000*time.Hour)
	defer cancel()
	c := dial(t, path)
	refuse := func(n int) {
		for range n {
			if _, err := c.CheckMetricsConsent(ctx, &vmtoolspb.EmptyMessage{}); status.Code(err) != codes.ResourceExhausted && status.Code(err) != codes.DeadlineExceeded {
				t.Fatalf("one call too many: %v", err)
			}
		}
	}
	objects := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapObjects)
	}
	const calls = 4000
	refuse(100)
	before := objects()
	refuse(calls)
	if kept := objects() - before; kept > calls {
		t.Errorf("%d objects are kept of %d calls", kept, calls)
	}
	close(h.leave)
	if err := <-held; err != nil {
		t.Error(err)
	}
}

// A chatty agent answers with a message that is short, and large in memory.
type chatty struct {
	pb.UnimplementedCrashListenerServer
}

func (chatty) SendCrashReport(context.Context, *pb.CrashReport) (*vmtoolspb.EmptyMessage, error) {
	m := &vmtoolspb.EmptyMessage{}
	m.ProtoReflect().SetUnknown([]byte(strings.Repeat("\x0a\x00", 1000)))
	return m, nil
}

func (chatty) SendFailureReport(context.Context, *pb.FailureReport) (*vmtoolspb.EmptyMessage, error) {
	return &vmtoolspb.EmptyMessage{}, nil
}

// What an agent answers is bounded in fields too.
func TestAnswersAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// A call has ended for the client a moment before it has for the server.
	s := wire.Serve(l, "test", wire.Limits{Connections: 1, Calls: 2, Message: 1 << 20, Fields: 10, Timeout: patience}, slog.New(slog.DiscardHandler),
		func(g *grpc.Server) { pb.RegisterCrashListenerServer(g, chatty{}) })
	defer s.Close()
	conn := &wire.Conn{MaxMessage: 1 << 20, MaxFields: 999, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	defer conn.Close()
	c := pb.NewCrashListenerClient(conn)
	if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{}); err == nil || !strings.Contains(err.Error(), "too many fields") {
		t.Errorf("a thousand fields: %v", err)
	}
	if _, err := c.SendFailureReport(t.Context(), &pb.FailureReport{}); err != nil {
		t.Error(err)
	}
}

// Messages that take much memory when they are read are refused, and those that
// take less are worked on a few at a time, however many there are.
func TestMemoryIsBounded(t *testing.T) {
	h, _, path := serve(t, wire.Limits{Connections: 64, Calls: 64, Message: 1 << 20, Fields: 1 << 20, Memory: 1 << 20, Timeout: patience})
	c := dial(t, path)
	many := map[string]string{}
	for i := range 10000 {
		many[strconv.Itoa(i)] = ""
	}
	if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{Metadata: many}); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("ten thousand entries: %v", err)
	}
	report := &pb.FailureReport{FailedProcess: strings.Repeat("a", 100<<10)}
	ended := make(chan error, 32)
	for range 32 {
		c := dial(t, path)
		go func() {
			_, err := c.SendFailureReport(t.Context(), report)
			ended <- err
		}()
	}
	for range 2 {
		<-h.inside
	}
	// Eight wait, and all others are told so.
	for range 32 - 2 - 8 {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "large messages") {
			t.Fatalf("a large message too many: %v", err)
		}
	}
	if n := len(h.inside); n != 0 {
		t.Errorf("%d more are worked on", n)
	}
	// Small ones pass them by.
	if _, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); err != nil {
		t.Error(err)
	}
	close(h.leave)
	for range 2 + 8 {
		if err := <-ended; err != nil {
			t.Errorf("one that waited: %v", err)
		}
	}
	// Each has given its place back.
	for range 20 {
		if _, err := c.SendFailureReport(t.Context(), report); err != nil {
			t.Fatal(err)
		}
	}
}
