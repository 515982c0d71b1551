package maitred

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/auberge-vm/auberge/guestlink"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// What one guest may send to its log at once. A shipper needs one connection,
// and one call at a time for the kernel and one for programs.
const (
	maxLogConnections = 4
	maxLogStreams     = 2
	maxLogMessage     = 256 << 10 // bytes
	maxLogRecords     = 4096      // of a message: empty ones take many times their size in memory
	closeTimeout      = time.Second
	// logIdle ends connections on which nothing comes: they cost memory, and
	// leave no place for others. A shipper connects again when it has something.
	logIdle = time.Minute
)

// A Collector hears what one guest logs.
type Collector struct {
	server *grpc.Server
	served chan struct{}
}

// Collect serves the guest's LogCollector on l, which is closed with the
// collector.
func Collect(l net.Listener, sink guestlink.LogSink, log *slog.Logger) *Collector {
	return collect(l, sink, log, logIdle)
}

func collect(l net.Listener, sink guestlink.LogSink, log *slog.Logger, idle time.Duration) *Collector {
	c := &Collector{served: make(chan struct{}), server: grpc.NewServer(
		grpc.MaxRecvMsgSize(maxLogMessage), grpc.MaxConcurrentStreams(maxLogStreams),
		grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(setupTimeout),
		grpc.ReadBufferSize(buffer), grpc.WriteBufferSize(buffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idle}),
		grpc.ForceServerCodecV2(fewRecords{encoding.GetCodecV2("proto")}))}
	pb.RegisterLogCollectorServer(c.server, logCollector{sink: sink})
	go func() {
		defer close(c.served)
		if err := c.server.Serve(netutil.LimitListener(l, maxLogConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			log.Error("the guest's logs are not heard any more", "err", err)
		}
	}()
	return c
}

// Close waits a moment for the answers to calls in progress and ends what is
// left then.
func (c *Collector) Close() {
	t := time.AfterFunc(closeTimeout, c.server.Stop)
	c.server.GracefulStop()
	t.Stop()
	<-c.served
}

type logCollector struct {
	pb.UnimplementedLogCollectorServer
	sink guestlink.LogSink
}

func (c logCollector) CollectKernelLogs(ctx context.Context, req *pb.LogRequest) (*pb.EmptyMessage, error) {
	return c.collect(ctx, true, req)
}

func (c logCollector) CollectUserLogs(ctx context.Context, req *pb.LogRequest) (*pb.EmptyMessage, error) {
	return c.collect(ctx, false, req)
}

func (c logCollector) collect(ctx context.Context, kernel bool, req *pb.LogRequest) (*pb.EmptyMessage, error) {
	records := make([]guestlink.LogRecord, 0, len(req.Records))
	for _, r := range req.Records {
		rec := guestlink.LogRecord{Severity: int(r.GetSeverity()), Content: r.GetContent()}
		if t := r.GetTimestamp(); t != nil {
			rec.Time = time.Unix(t.Seconds, int64(t.Nanos))
		}
		records = append(records, rec)
	}
	if err := c.sink(ctx, kernel, records); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	return &pb.EmptyMessage{}, nil
}

// fewRecords refuses messages of too many fields before any of them takes
// memory.
type fewRecords struct{ encoding.CodecV2 }

func (c fewRecords) Unmarshal(data mem.BufferSlice, v any) error {
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	rest := b.ReadOnlyData()
	for n := 0; len(rest) > 0; n++ {
		_, _, k := protowire.ConsumeField(rest)
		if k < 0 {
			return protowire.ParseError(k)
		}
		if n == maxLogRecords {
			return fmt.Errorf("more than %d records", maxLogRecords)
		}
		rest = rest[k:]
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{b}, v)
}
