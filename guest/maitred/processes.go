package maitred

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// LaunchProcess starts a program in a session of its own, in / and as root. A
// program that cannot be started is FAILED with the errno as the code, and the
// console tells why. A caller that waits and gives up leaves the program
// running.
func (s *Server) LaunchProcess(ctx context.Context, req *pb.LaunchProcessRequest) (*pb.LaunchProcessResponse, error) {
	if err := checkLaunch(req); err != nil {
		return nil, err
	}
	p, err := s.launch(req)
	switch {
	case errors.Is(err, core.ErrTableClosed):
		return nil, status.Errorf(codes.Unavailable, "cannot launch %s: %v", req.Argv[0], err)
	case err != nil:
		s.log.Error("a program was not launched", "argv", req.Argv, "err", err)
		return &pb.LaunchProcessResponse{Status: pb.ProcessStatus_FAILED, Code: errnoOf(err)}, nil
	case !req.WaitForExit:
		return &pb.LaunchProcessResponse{Status: pb.ProcessStatus_LAUNCHED}, nil
	}
	exit, err := p.Wait(ctx)
	switch {
	case err != nil:
		return nil, status.FromContextError(err).Err()
	case exit.Signaled():
		return &pb.LaunchProcessResponse{Status: pb.ProcessStatus_SIGNALED, Code: int32(exit.Signal())}, nil
	}
	return &pb.LaunchProcessResponse{Status: pb.ProcessStatus_EXITED, Code: int32(exit.Code())}, nil
}

func checkLaunch(req *pb.LaunchProcessRequest) error {
	if len(req.Argv) == 0 || req.Argv[0] == "" {
		return invalid("LaunchProcess without a program: argv is empty")
	}
	if name := req.Argv[0]; !filepath.IsAbs(name) && strings.Contains(name, "/") {
		return invalid("LaunchProcess of %q: argv[0] must be an absolute path or a bare name", name)
	}
	if req.Respawn && req.WaitForExit {
		return invalid("LaunchProcess of %q: respawn and wait_for_exit exclude each other", req.Argv[0])
	}
	if slices.ContainsFunc(req.Argv, hasNUL) {
		return invalid("LaunchProcess of %q: an argument contains a NUL byte", req.Argv[0])
	}
	for name, value := range req.Env {
		if name == "" || strings.Contains(name, "=") || hasNUL(name) || hasNUL(value) {
			return invalid("LaunchProcess of %q: %q cannot be an environment variable", req.Argv[0], name)
		}
	}
	return nil
}

func hasNUL(s string) bool { return strings.ContainsRune(s, 0) }

// launch starts what checkLaunch has accepted. The process of a supervised
// service is the supervisor's, and nil here.
func (s *Server) launch(req *pb.LaunchProcessRequest) (*core.Process, error) {
	path, err := core.LookPath(req.Argv[0])
	if err != nil {
		return nil, err
	}
	c := core.Command{Path: path, Args: req.Argv, Env: environment(req.Env)}
	if req.UseConsole {
		c.Stdio = s.consolePath
	}
	if req.Respawn {
		return nil, s.services.Start(filepath.Base(path), c)
	}
	return s.table.Start(c)
}

// environment is PATH and HOME with what the caller adds or replaces.
func environment(add map[string]string) []string {
	all := map[string]string{"PATH": core.DefaultPath, "HOME": "/root"}
	for name, value := range add {
		all[name] = value
	}
	env := make([]string, 0, len(all))
	for name, value := range all {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}

// errnoOf finds the system's error number in err; EIO stands for none.
func errnoOf(err error) int32 {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 {
		return int32(errno)
	}
	return int32(unix.EIO)
}
