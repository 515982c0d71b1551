package maitred_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"

	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/vsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

// A guest is a Maitred made of functions; a real one runs in test/e2e.
type guest struct {
	pb.UnimplementedMaitredServer
	configureNetwork func(context.Context, *pb.NetworkConfigRequest) (*pb.EmptyMessage, error)
	setResolvConfig  func(context.Context, *pb.SetResolvConfigRequest) (*pb.EmptyMessage, error)
	setTime          func(context.Context, *pb.SetTimeRequest) (*pb.EmptyMessage, error)
	mount            func(context.Context, *pb.MountRequest) (*pb.MountResponse, error)
	startTermina     func(context.Context, *pb.StartTerminaRequest) (*pb.StartTerminaResponse, error)
	kernelVersion    func(context.Context) (*pb.GetKernelVersionResponse, error)
	shutdown         func(context.Context) (*pb.EmptyMessage, error)

	connections
}

// connections tell of the host's connections to a guest.
type connections struct{ ended chan struct{} }

func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (connections) HandleRPC(context.Context, stats.RPCStats)                         {}
func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (c connections) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnEnd); ok && c.ended != nil {
		c.ended <- struct{}{}
	}
}

func (g *guest) ConfigureNetwork(ctx context.Context, r *pb.NetworkConfigRequest) (*pb.EmptyMessage, error) {
	return g.configureNetwork(ctx, r)
}

func (g *guest) SetResolvConfig(ctx context.Context, r *pb.SetResolvConfigRequest) (*pb.EmptyMessage, error) {
	return g.setResolvConfig(ctx, r)
}

func (g *guest) SetTime(ctx context.Context, r *pb.SetTimeRequest) (*pb.EmptyMessage, error) {
	if g.setTime == nil {
		return g.UnimplementedMaitredServer.SetTime(ctx, r)
	}
	return g.setTime(ctx, r)
}

func (g *guest) Mount(ctx context.Context, r *pb.MountRequest) (*pb.MountResponse, error) {
	return g.mount(ctx, r)
}

func (g *guest) StartTermina(ctx context.Context, r *pb.StartTerminaRequest) (*pb.StartTerminaResponse, error) {
	return g.startTermina(ctx, r)
}

func (g *guest) GetKernelVersion(ctx context.Context, _ *pb.EmptyMessage) (*pb.GetKernelVersionResponse, error) {
	return g.kernelVersion(ctx)
}

func (g *guest) Shutdown(ctx context.Context, _ *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	return g.shutdown(ctx)
}

// A pair is a link and the two endpoints of its guest.
type pair struct {
	*maitred.Link
	t *testing.T
	// endpoint is where the guest's calls arrive.
	endpoint string
	log      *syncbuf.Buffer
}

// newPair connects a link with a guest; without one, nothing listens there.
func newPair(t *testing.T, g *guest) *pair {
	t.Helper()
	dir := t.TempDir()
	p := &pair{t: t, endpoint: filepath.Join(dir, "vm.vsock_7777"), log: &syncbuf.Buffer{}}
	l, err := net.Listen("unix", p.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(dir, "agent")
	if g != nil {
		gl, err := net.Listen("unix", agent)
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(grpc.StatsHandler(g))
		pb.RegisterMaitredServer(s, g)
		served := make(chan struct{})
		go func() {
			defer close(served)
			s.Serve(gl)
		}()
		t.Cleanup(func() {
			s.Stop()
			<-served
		})
	}
	var d net.Dialer
	dial := func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", agent) }
	peer := vsock.Addr{VM: "abc", CID: 33}
	p.Link, err = maitred.New(vsock.NewListener(l, peer, 7777), dial, slog.New(slog.NewTextHandler(p.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// listener is a guest's client of the host's StartupListener.
func (p *pair) listener() pb.StartupListenerClient {
	p.t.Helper()
	c, err := grpc.NewClient("passthrough:///host", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.endpoint)
		}))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return pb.NewStartupListenerClient(c)
}

func (p *pair) isReady() bool {
	select {
	case <-p.Ready():
		return true
	default:
		return false
	}
}

// dialRaw opens a stream on which anything can be sent.
func (p *pair) dialRaw() net.Conn {
	p.t.Helper()
	c, err := net.Dial("unix", p.endpoint)
	if err != nil {
		p.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	p.t.Cleanup(func() { c.Close() })
	return c
}

// An h2 is a guest's HTTP/2 connection without gRPC's good manners.
type h2 struct {
	t *testing.T
	c net.Conn
	*http2.Framer
}

// greet sends the client's half of the greeting.
func (p *pair) greet(c net.Conn) *h2 {
	p.t.Helper()
	h := &h2{p.t, c, http2.NewFramer(c, c)}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		p.t.Fatal(err)
	}
	if err := h.WriteSettings(); err != nil {
		p.t.Fatal(err)
	}
	return h
}

// call sends a unary call with an empty message in stream 1 and returns the
// first thing that the host says about it: a HEADERS, RST_STREAM or GOAWAY
// frame, or nil for the end of the connection.
func (h *h2) call(path string, headers ...hpack.HeaderField) http2.Frame {
	h.t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path},
		{Name: ":authority", Value: "host"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}, headers...) {
		e.WriteField(f)
	}
	const fragment = 16 << 10
	b := block.Bytes()
	first := b[:min(len(b), fragment)]
	rest := b[len(first):]
	h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(rest) == 0})
	for len(rest) > 0 {
		part := rest[:min(len(rest), fragment)]
		rest = rest[len(part):]
		h.WriteContinuation(1, len(rest) == 0, part)
	}
	h.WriteData(1, true, binary.BigEndian.AppendUint32([]byte{0}, 0))
	for {
		f, err := h.ReadFrame()
		if err != nil {
			return nil
		}
		switch f.(type) {
		case *http2.HeadersFrame, *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return f
		}
	}
}
