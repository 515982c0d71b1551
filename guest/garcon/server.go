package garcon

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

const (
	// maxMessage bounds a request; a playbook is the largest.
	maxMessage = 4 << 20
	// maxHeaders bounds a request's headers, in bytes.
	maxHeaders = 16 << 10
	// maxCalls bounds the calls at a time on one connection.
	maxCalls = 64
)

// Applications starts programs. It reports failures in its response.
type Applications interface {
	LaunchApplication(context.Context, *pb.LaunchApplicationRequest) (*pb.LaunchApplicationResponse, error)
}

// Icons finds the pictures of applications; one that has none is left out.
type Icons interface {
	GetIcon(context.Context, *pb.IconRequest) (*pb.IconResponse, error)
}

// A Server answers the host. A part that is nil answers that it is missing.
type Server struct {
	pb.UnimplementedGarconServer

	Log          *slog.Logger
	Applications Applications
	Icons        Icons
}

var _ pb.GarconServer = (*Server)(nil)

// Register returns a grpc server with this face.
func (s *Server) Register() *grpc.Server {
	face := grpc.NewServer(
		grpc.UnaryInterceptor(s.guard),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.ReadBufferSize(4<<10),
		grpc.WriteBufferSize(32<<10),
		grpc.SharedWriteBuffer(true),
	)
	pb.RegisterGarconServer(face, s)
	return face
}

// guard keeps a defect in one call from ending the agent, and leaves a trace
// of every call that failed.
func (s *Server) guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	method := path.Base(info.FullMethod)
	defer func() {
		if r := recover(); r != nil {
			s.Log.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: the container's agent has a defect, see its journal (journalctl --user -u cros-garcon)", method)
		}
		if err != nil {
			s.Log.Error("a call failed", "method", method, "err", err)
		}
	}()
	return handler(ctx, req)
}

// LaunchApplication starts a program of a .desktop file.
func (s *Server) LaunchApplication(ctx context.Context, req *pb.LaunchApplicationRequest) (*pb.LaunchApplicationResponse, error) {
	if s.Applications == nil {
		return nil, status.Error(codes.Unavailable, "LaunchApplication: this agent was built without applications")
	}
	return s.Applications.LaunchApplication(ctx, req)
}

// GetIcon returns icons.
func (s *Server) GetIcon(ctx context.Context, req *pb.IconRequest) (*pb.IconResponse, error) {
	if s.Icons == nil {
		return nil, status.Error(codes.Unavailable, "GetIcon: this agent was built without icons")
	}
	return s.Icons.GetIcon(ctx, req)
}
