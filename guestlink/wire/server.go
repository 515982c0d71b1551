package wire

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// Limits are what one guest may have of one server.
type Limits struct {
	Connections int
	// Calls in progress, over all connections.
	Calls int
	// Message bounds one message in bytes, Fields how many fields it may have
	// at all depths: small ones take many times their size in memory.
	Message, Fields int
	// Memory bounds what one message takes when it is read, in bytes, about;
	// zero leaves that to the fields.
	Memory int
	// Timeout ends a call that is not done by then, a half sent one included.
	Timeout time.Duration
	// Patient are methods without it.
	Patient []string
	// Idle ends connections without calls: they leave no place for others.
	Idle time.Duration
}

const (
	setupTimeout = 10 * time.Second
	// window is how much of a call gRPC takes before somebody reads it.
	window = 64 << 10
)

// A Server hears the calls of one guest on one port.
type Server struct {
	log    *slog.Logger
	what   string
	server *grpc.Server
	calls  atomic.Int64

	served sync.WaitGroup
}

// Serve begins to serve l, which is closed with the server. What names the
// calls in the log.
func Serve(l net.Listener, what string, limits Limits, log *slog.Logger, register func(*grpc.Server)) *Server {
	s := &Server{log: log, what: what}
	patient := map[string]bool{}
	for _, m := range limits.Patient {
		patient[m] = true
	}
	inside := newRoom(limits.Memory)
	s.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(limits.Message), grpc.MaxConcurrentStreams(uint32(limits.Calls)),
		grpc.MaxHeaderListSize(MaxHeaders), grpc.ConnectionTimeout(setupTimeout),
		grpc.ReadBufferSize(Buffer), grpc.WriteBufferSize(Buffer),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: limits.Idle}),
		grpc.ForceServerCodecV2(fewFields{CodecV2: encoding.GetCodecV2("proto"), limit: limits.Fields, room: inside}),
		grpc.WaitForHandlers(true),
		grpc.InTapHandle(func(ctx context.Context, info *tap.Info) (context.Context, error) {
			if s.calls.Add(1) > int64(limits.Calls) {
				s.calls.Add(-1)
				return refuse(ctx, tooMany(limits.Calls))
			}
			// gRPC ends the stream's context with the call.
			context.AfterFunc(ctx, func() { s.calls.Add(-1) })
			if limits.Timeout > 0 && !patient[path.Base(info.FullMethodName)] {
				bounded, cancel := context.WithTimeout(ctx, limits.Timeout)
				context.AfterFunc(ctx, cancel)
				ctx = bounded
			}
			return ctx, nil
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			defer inside.leave(req)
			if err, ok := ctx.Value(refused{}).(error); ok {
				return nil, err
			}
			return handler(ctx, req)
		}))
	register(s.server)
	s.served.Go(func() {
		if err := s.server.Serve(netutil.LimitListener(l, limits.Connections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			log.Error(what+" are not heard any more", "err", err)
		}
	})
	return s
}

func tooMany(calls int) error {
	return status.Errorf(codes.ResourceExhausted, "more than %d calls at once", calls)
}

// refused is the key of the error in the context of a call that is one too
// many.
type refused struct{}

const (
	// soon is a deadline that may be left to itself.
	soon = 10 * time.Second
	// refusal is how long a call lasts that is refused.
	refusal = 100 * time.Millisecond
)

// refuse ends a call that is one too many. gRPC keeps the timer of a call that
// is refused here until the deadline, which the guest sets, and may be in
// years: such a call begins, and ends before its handler.
func refuse(ctx context.Context, err error) (context.Context, error) {
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) < soon {
		return nil, err
	}
	short, cancel := context.WithTimeout(context.WithValue(ctx, refused{}, err), refusal)
	context.AfterFunc(ctx, cancel)
	return short, nil
}

// Retire takes no more connections, lets calls in progress end, and is Close
// after that. It does not wait.
func (s *Server) Retire() { s.served.Go(s.server.GracefulStop) }

// Close ends all calls and waits for their handlers.
func (s *Server) Close() {
	s.server.Stop()
	s.served.Wait()
}
