package garcon

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/auberge-vm/auberge/guest/garcon/ansible"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	"github.com/auberge-vm/auberge/guest/garcon/shells"
	"github.com/auberge-vm/auberge/guest/garcon/watch"
	"github.com/auberge-vm/auberge/guest/guard"
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
		grpc.UnaryInterceptor(guard.Calls(s.log, "the container's agent has a defect, see its journal (journalctl --user -u cros-garcon)")),
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

// reason is a failure as the text of a response.
func (s *server) reason(method string, err error) string {
	s.log.Warn("a request was not met", "method", method, "err", err)
	return clip(err.Error())
}
