package garcon

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/garcon/ansible"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	"github.com/auberge-vm/auberge/guest/garcon/shells"
	"github.com/auberge-vm/auberge/guest/garcon/watch"
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

// A server answers the host.
type server struct {
	pb.UnimplementedGarconServer

	log        *slog.Logger
	parts      Parts
	user       session.User
	environ    []string
	shells     *shells.Launcher
	packages   *packagekit.Client
	operations *packagekit.Operations
	playbooks  *ansible.Runner
	files      *watch.Files
	sftpPort   uint32
}

var _ pb.GarconServer = (*server)(nil)

// register returns a grpc server with this face.
func (s *server) register() *grpc.Server {
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
func (s *server) guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	method := path.Base(info.FullMethod)
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: the container's agent has a defect, see its journal (journalctl --user -u cros-garcon)", method)
		}
		if err != nil {
			s.log.Error("a call failed", "method", method, "err", err)
		}
	}()
	return handler(ctx, req)
}

// reason is a failure as the text of a response.
func (s *server) reason(method string, err error) string {
	s.log.Warn("a request was not met", "method", method, "err", err)
	return clip(err.Error())
}
