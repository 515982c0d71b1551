package wire_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// A host takes reports as long as it is told to.
type host struct {
	pb.UnimplementedCrashListenerServer
	inside chan struct{}
	leave  chan struct{}
}

func (h *host) CheckMetricsConsent(context.Context, *vmtoolspb.EmptyMessage) (*pb.MetricsConsentResponse, error) {
	return &pb.MetricsConsentResponse{}, nil
}

func (h *host) SendFailureReport(ctx context.Context, _ *pb.FailureReport) (*vmtoolspb.EmptyMessage, error) {
	h.inside <- struct{}{}
	select {
	case <-h.leave:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &vmtoolspb.EmptyMessage{}, nil
}

func (h *host) SendCrashReport(context.Context, *pb.CrashReport) (*vmtoolspb.EmptyMessage, error) {
	return &vmtoolspb.EmptyMessage{}, nil
}

func serve(t *testing.T, limits wire.Limits) (*host, *wire.Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{inside: make(chan struct{}, 100), leave: make(chan struct{})}
	s := wire.Serve(l, "test", limits, slog.New(slog.NewTextHandler(t.Output(), nil)), func(g *grpc.Server) { pb.RegisterCrashListenerServer(g, h) })
	t.Cleanup(s.Close)
	return h, s, path
}

func dial(t *testing.T, path string) pb.CrashListenerClient {
	t.Helper()
	c, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return pb.NewCrashListenerClient(c)
}

// The calls of all connections are counted together, and each gives its place
// back.
func TestCallsAreBounded(t *testing.T) {
	h, _, path := serve(t, wire.Limits{Connections: 8, Calls: 4, Message: 1 << 20, Fields: 100, Timeout: patience})
	var calls sync.WaitGroup
	for range 4 {
		c := dial(t, path)
		calls.Go(func() {
			if _, err := c.SendFailureReport(t.Context(), &pb.FailureReport{}); err != nil {
				t.Error(err)
			}
		})
		<-h.inside
	}
	c := dial(t, path)
	if _, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a fifth call: %v", err)
	}
	close(h.leave)
	calls.Wait()
	for range 20 {
		// A place is free a moment after the answer.
		end := time.Now().Add(patience)
		for {
			_, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{})
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
}

// A call that is not done in its time gives its place back, one of which only
// half is sent as well.
func TestCallsEnd(t *testing.T) {
	_, _, path := serve(t, wire.Limits{Connections: 8, Calls: 1, Message: 1 << 20, Fields: 100, Timeout: 100 * time.Millisecond})
	c := dial(t, path)
	if _, err := c.SendFailureReport(t.Context(), &pb.FailureReport{}); err == nil {
		t.Error("a call that lasts for ever is answered")
	}
	g, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	end := time.Now().Add(patience)
	for ended := false; !ended; {
		if time.Now().After(end) {
			t.Fatal("a half call does not end")
		}
		// A call without its message.
		s, err := g.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/vm_tools.cicerone.CrashListener/CheckMetricsConsent")
		if err != nil {
			t.Fatal(err)
		}
		err = s.RecvMsg(&pb.MetricsConsentResponse{})
		ended = status.Code(err) == codes.DeadlineExceeded || status.Code(err) == codes.Internal || status.Code(err) == codes.Canceled
		if err == nil || err == io.EOF {
			t.Fatalf("half a call is answered: %v", err)
		}
	}
	for {
		if _, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the place is not given back")
		}
	}
}

// A message is bounded in bytes and in fields, at all depths.
func TestMessagesAreBounded(t *testing.T) {
	_, _, path := serve(t, wire.Limits{Connections: 8, Calls: 4, Message: 1 << 20, Fields: 100, Timeout: patience})
	c := dial(t, path)
	few, many := map[string]string{}, map[string]string{}
	for i := range 60 {
		if i < 30 {
			few[strings.Repeat("a", i)] = "b" // three fields each
		}
		many[strings.Repeat("a", i)] = "b"
	}
	if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{Metadata: few}); err != nil {
		t.Error(err)
	}
	if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{Metadata: many}); err == nil || !strings.Contains(err.Error(), "too many fields") {
		t.Errorf("180 fields: %v", err)
	}
	if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{Minidump: make([]byte, 2<<20)}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("two megabytes: %v", err)
	}
}

// A server that is retired ends what it has begun, and takes nothing more.
func TestRetire(t *testing.T) {
	h, s, path := serve(t, wire.Limits{Connections: 8, Calls: 4, Message: 1 << 20, Fields: 100, Timeout: patience})
	c := dial(t, path)
	done := make(chan error, 1)
	go func() {
		_, err := c.SendFailureReport(t.Context(), &pb.FailureReport{})
		done <- err
	}()
	<-h.inside
	s.Retire()
	close(h.leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.Close()
	if _, err := dial(t, path).CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); err == nil {
		t.Error("it is served")
	}
}

// A guest's agent that comes up after it was not reached is reached by the
// next call.
func TestConnReachesWhatComesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	conn := &wire.Conn{MaxMessage: 1 << 20, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	defer conn.Close()
	c := pb.NewCrashListenerClient(conn)
	if _, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := wire.Serve(l, "test", wire.Limits{Connections: 1, Calls: 1, Message: 1 << 20, Fields: 10, Timeout: patience}, slog.New(slog.DiscardHandler),
		func(g *grpc.Server) { pb.RegisterCrashListenerServer(g, &host{}) })
	defer s.Close()
	if _, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{}); err != nil {
		t.Error(err)
	}
}

// Of calls at the same time that do not reach an agent, each is told so.
func TestConnTellsEachCall(t *testing.T) {
	for range 50 {
		dialed := make(chan struct{})
		conn := &wire.Conn{MaxMessage: 1 << 20, Dial: func(context.Context) (net.Conn, error) {
			<-dialed
			return nil, errors.New("nobody is there")
		}}
		c := pb.NewCrashListenerClient(conn)
		ended := make(chan error)
		const calls = 8
		for range calls {
			go func() {
				_, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{})
				ended <- err
			}()
		}
		close(dialed)
		for range calls {
			if err := <-ended; status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		}
		conn.Close()
	}
}
