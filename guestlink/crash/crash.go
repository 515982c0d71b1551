// Package crash hears what a guest reports of programs that crashed.
package crash

import (
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

var limits = wire.Limits{Connections: 4, Calls: 4, Message: 4 << 20, Fields: 1 << 12, Memory: 8 << 20,
	Timeout: time.Minute, Idle: time.Minute}

// maxText is how many characters of a report reach the log.
const maxText = 200

// Serve hears one VM's crash reports on l, which is closed with the server.
// They are logged, a few in an hour, and nothing of them is kept: nobody has
// agreed to that. Ignore says that reports do not matter now, as when the VM
// stops.
func Serve(l net.Listener, allow func() bool, ignore func() bool, log *slog.Logger) *wire.Server {
	h := listener{log: log, allow: allow, ignore: ignore}
	return wire.Serve(l, "the VM's crash reports", limits, log,
		func(s *grpc.Server) { pb.RegisterCrashListenerServer(s, h) })
}

type listener struct {
	pb.UnimplementedCrashListenerServer
	log           *slog.Logger
	allow, ignore func() bool
}

// CheckMetricsConsent says that nobody has agreed to reports being sent.
func (listener) CheckMetricsConsent(context.Context, *vmtoolspb.EmptyMessage) (*pb.MetricsConsentResponse, error) {
	return &pb.MetricsConsentResponse{}, nil
}

func (l listener) SendCrashReport(_ context.Context, r *pb.CrashReport) (*vmtoolspb.EmptyMessage, error) {
	return l.report("a program of the guest crashed", "program", r.GetMetadata()["exec_name"])
}

func (l listener) SendFailureReport(_ context.Context, r *pb.FailureReport) (*vmtoolspb.EmptyMessage, error) {
	return l.report("a service of the guest failed", "service", r.GetFailedProcess())
}

func (l listener) report(what, key, name string) (*vmtoolspb.EmptyMessage, error) {
	switch {
	case l.ignore():
	case !l.allow():
		return nil, status.Error(codes.ResourceExhausted, "too many reports")
	default:
		l.log.Warn(what, key, wire.Text(name, maxText))
	}
	return &vmtoolspb.EmptyMessage{}, nil
}
