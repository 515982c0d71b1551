package maitred

import (
	"context"
	"log/slog"
	"net"
	"path"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/guest/guard"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// statefulDir is where the stateful disk is mounted.
const statefulDir = "/mnt/stateful"

// A Server answers the host. What a newer contract may add is answered with
// Unimplemented by the embedded server.
type Server struct {
	pb.UnimplementedMaitredServer

	table    *core.Table
	services *core.Supervisor
	log      *slog.Logger

	// What tests put in the place of the machine.
	setClock    func(time.Time) error
	configure   func(core.IPv4) error
	dialHost    func(ctx context.Context, port uint32) (net.Conn, error)
	root        string // empty for the machine's own
	resolvPath  string
	consolePath string
	statefulDir string
	toolsDir    string
	findDisk    func(serial string) (device string, err error)
	// prepareContainers is for what their manager needs running.
	prepareContainers func(ctx context.Context, env []string)

	// reservedVsock: the host dials from reserved ports only.
	reservedVsock bool

	network sync.Mutex // one change of the network at a time
	storage sync.Mutex // one change of the disks at a time
	account sync.Mutex // one change of users and their like at a time
	syncing chan struct{}
	resize  *resize
	// stateful is how mounting the stateful disk went; storage guards it.
	stateful pb.StartTerminaResponse_MountResult
	// containers says that what runs them was started; storage guards it.
	containers bool

	askShutdown func()
	shutdown    chan struct{} // closed when the host asked for the end
}

// NewServer returns the face of a VM whose processes are in table.
func NewServer(table *core.Table, services *core.Supervisor, log *slog.Logger) *Server {
	shutdown := make(chan struct{})
	s := &Server{
		table:       table,
		services:    services,
		log:         log,
		setClock:    core.SetClock,
		configure:   core.ConfigureEthernet,
		dialHost:    dialHost,
		resolvPath:  core.ResolvPath,
		consolePath: "/dev/console",
		statefulDir: statefulDir,
		toolsDir:    toolsDir,
		findDisk:    core.DiskBySerial,
		syncing:     make(chan struct{}, 1),
		resize:      newResize(),
		askShutdown: sync.OnceFunc(func() { close(shutdown) }),
		shutdown:    shutdown,
	}
	s.prepareContainers = s.startLxcfs
	return s
}

func dialHost(ctx context.Context, port uint32) (net.Conn, error) {
	return vsock.DialHost(ctx, port)
}

// register returns a grpc server with this face, and with buffers that suit
// small calls: PID 1 shall be small.
func (s *Server) register() *grpc.Server {
	face := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.Calls(s.log, "the agent has a defect, see the VM's console"), unknown),
		grpc.ReadBufferSize(4<<10),
		grpc.WriteBufferSize(4<<10),
		grpc.SharedWriteBuffer(true),
	)
	pb.RegisterMaitredServer(face, s)
	return face
}

// unknown says in words what a newer contract has and this agent has not.
func unknown(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if status.Code(err) == codes.Unimplemented {
		err = status.Errorf(codes.Unimplemented, "%s: this VM's agent cannot do that yet", path.Base(info.FullMethod))
	}
	return resp, err
}

// invalid refuses a request.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// failure makes an error of the machine one for the host. A context that
// ended says so.
func failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// Shutdown answers, and then the VM powers off in order.
func (s *Server) Shutdown(context.Context, *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	s.askShutdown()
	return &pb.EmptyMessage{}, nil
}

// nearEpoch is the span around 1970 in which a time is a mistake and ignored.
const nearEpoch = 24 * time.Hour

// SetTime sets the clock.
func (s *Server) SetTime(ctx context.Context, req *pb.SetTimeRequest) (*pb.EmptyMessage, error) {
	if req.Time == nil {
		return nil, invalid("SetTime without a time")
	}
	if err := req.Time.CheckValid(); err != nil {
		return nil, invalid("SetTime with a time that is none: %v", err)
	}
	t := req.Time.AsTime()
	switch since := t.Sub(time.Unix(0, 0)); {
	case since < -nearEpoch:
		return nil, invalid("SetTime with %s: no clock can be set to before 1970", t)
	case since < nearEpoch:
		s.log.Warn("a time near 1970 is ignored", "time", t)
		return &pb.EmptyMessage{}, nil
	}
	if err := s.setClock(t); err != nil {
		return nil, failure(ctx, err)
	}
	s.log.Info("clock set", "time", t)
	return &pb.EmptyMessage{}, nil
}

// GetKernelVersion is uname -r and uname -v.
func (s *Server) GetKernelVersion(ctx context.Context, _ *pb.EmptyMessage) (*pb.GetKernelVersionResponse, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, failure(ctx, err)
	}
	return &pb.GetKernelVersionResponse{
		KernelRelease: unix.ByteSliceToString(u.Release[:]),
		KernelVersion: unix.ByteSliceToString(u.Version[:]),
	}, nil
}
