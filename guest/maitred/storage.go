package maitred

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Mount mounts a file system. What mount(2) itself says is the response's
// error, an errno, and the console tells more; all else is a status.
func (s *Server) Mount(ctx context.Context, req *pb.MountRequest) (*pb.MountResponse, error) {
	if err := checkMount(req); err != nil {
		return nil, err
	}
	s.storage.Lock()
	defer s.storage.Unlock()
	if req.CreateTarget {
		if err := os.MkdirAll(req.Target, 0o755); err != nil {
			return nil, failure(ctx, fmt.Errorf("cannot make the mount point: %w", err))
		}
	}
	m := core.MountPoint{
		Source: req.Source, Target: req.Target, Type: req.Fstype,
		Flags: uintptr(req.Mountflags), Options: req.Options,
	}
	err := m.Mount()
	// EINVAL is what a disk without a file system gives.
	if errors.Is(err, unix.EINVAL) && req.MkfsIfNeeded {
		err = s.formatAndMount(ctx, m, err)
	}
	if err != nil {
		s.log.Error("a file system was not mounted", "err", err)
		return &pb.MountResponse{Error: errnoOf(err)}, nil
	}
	if req.Permissions == 0 {
		return &pb.MountResponse{}, nil
	}
	if err := unix.Chmod(req.Target, req.Permissions); err != nil {
		unix.Unmount(req.Target, 0)
		return nil, failure(ctx, fmt.Errorf("cannot give %s the permissions %#o: %w", req.Target, req.Permissions, err))
	}
	return &pb.MountResponse{}, nil
}

func checkMount(req *pb.MountRequest) error {
	if err := checkTarget("Mount", req.Target); err != nil {
		return err
	}
	for _, s := range []string{req.Source, req.Fstype, req.Options} {
		if hasNUL(s) {
			return invalid("Mount at %s: %q contains a NUL byte", req.Target, s)
		}
	}
	if req.Permissions > 0o7777 {
		return invalid("Mount at %s: %#o are no permissions", req.Target, req.Permissions)
	}
	if req.MkfsIfNeeded && req.Fstype != "btrfs" {
		return invalid("Mount at %s: mkfs_if_needed makes btrfs only, not %q", req.Target, req.Fstype)
	}
	return nil
}

func checkTarget(call, target string) error {
	if !filepath.IsAbs(target) || hasNUL(target) {
		return invalid("%s: the target %q is not an absolute path", call, target)
	}
	return nil
}

// formatAndMount makes a file system where there is none, after mounting
// failed with why.
func (s *Server) formatAndMount(ctx context.Context, m core.MountPoint, why error) error {
	if err := core.MakeBtrfs(ctx, s.table, m.Source); err != nil {
		return fmt.Errorf("%w; it was not formatted either: %v", why, err)
	}
	s.log.Info("formatted a disk", "device", m.Source)
	return m.Mount()
}

// Mount9P mounts what a 9P server on the host offers. The kernel speaks over
// the socket that is dialled here, for as long as the mount lives.
func (s *Server) Mount9P(ctx context.Context, req *pb.Mount9PRequest) (*pb.MountResponse, error) {
	if req.Port == 0 || req.Port == 1<<32-1 {
		return nil, invalid("Mount9P at %q: %d is not a port", req.Target, req.Port)
	}
	if err := checkTarget("Mount9P", req.Target); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(req.Target, 0o755); err != nil {
		return nil, failure(ctx, fmt.Errorf("cannot make the mount point: %w", err))
	}
	conn, err := s.dialHost(ctx, req.Port)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "cannot reach the 9P server on the host's port %d: %v", req.Port, err)
	}
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, failure(ctx, err)
	}
	if err := mount9P(ctx, raw, req.Target); err != nil {
		if ctx.Err() != nil {
			return nil, failure(ctx, err)
		}
		s.log.Error("a 9P share was not mounted", "port", req.Port, "err", err)
		return &pb.MountResponse{Error: errnoOf(err)}, nil
	}
	return &pb.MountResponse{}, nil
}

// mount9P hands the socket to the kernel, which keeps its own reference to it.
func mount9P(ctx context.Context, raw syscall.RawConn, target string) error {
	// The kernel waits for a mute server without end; without the socket it
	// gives up.
	stop := context.AfterFunc(ctx, func() {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	})
	defer stop()
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		err = core.MountPoint{
			Source: "9p", Target: target, Type: "9p",
			Flags: unix.MS_NOSUID | unix.MS_NODEV,
			// A message is one write, see guestWrite in package vsock.
			Options: fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%d,version=9p2000.L,msize=32768,cache=none,access=any", fd, fd),
		}.Mount()
	})
	return errors.Join(ctlErr, err)
}
