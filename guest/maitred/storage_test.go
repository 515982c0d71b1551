package maitred

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

const diskSize = 128 << 20

func TestMountRefuses(t *testing.T) {
	client, _ := serve(t, nil)
	for name, req := range map[string]*pb.MountRequest{
		"no target":             {Source: "tmpfs", Fstype: "tmpfs"},
		"a relative target":     {Source: "tmpfs", Target: "mnt", Fstype: "tmpfs"},
		"a NUL in the target":   {Source: "tmpfs", Target: "/mnt\x00", Fstype: "tmpfs"},
		"a NUL in the options":  {Source: "tmpfs", Target: "/mnt", Fstype: "tmpfs", Options: "a\x00"},
		"a type as permissions": {Source: "tmpfs", Target: "/mnt", Fstype: "tmpfs", Permissions: 0o40755},
		"mkfs of ext4":          {Source: "/dev/vdb", Target: "/mnt", Fstype: "ext4", MkfsIfNeeded: true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Mount(t.Context(), req)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
}

func TestMount(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	client, _ := serve(t, nil)
	dir := coretest.Dir(t)
	mount := func(req *pb.MountRequest, want int32) {
		t.Helper()
		got, err := client.Mount(t.Context(), req)
		if err != nil || got.Error != want {
			t.Errorf("Mount(%v) = %v, %v; want the error %d", req, got, err, want)
		}
	}
	mount(&pb.MountRequest{Source: "tmpfs", Target: dir + "/a/b", Fstype: "tmpfs"}, int32(unix.ENOENT))
	mount(&pb.MountRequest{Source: "x", Target: dir, Fstype: "nosuchfs"}, int32(unix.ENODEV))
	mount(&pb.MountRequest{Source: "/no/such/disk", Target: dir, Fstype: "btrfs", MkfsIfNeeded: true}, int32(unix.ENOENT))
	mount(&pb.MountRequest{Source: "tmpfs", Target: dir + "/a/b", Fstype: "tmpfs", CreateTarget: true,
		Permissions: 0o1770, Mountflags: unix.MS_NOSUID, Options: "size=1m"}, 0)
	info, err := os.Stat(dir + "/a/b")
	if err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o770 {
		t.Errorf("mounted with %v, %v", info.Mode(), err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir+"/a/b", &fs); err != nil || fs.Flags&unix.ST_NOSUID == 0 || fs.Blocks*uint64(fs.Bsize) != 1<<20 {
		t.Errorf("flags and options did not arrive: %+v, %v", fs, err)
	}
	// What cannot get its permissions is not mounted either.
	_, err = client.Mount(t.Context(), &pb.MountRequest{Source: "tmpfs", Target: dir + "/ro", Fstype: "tmpfs",
		CreateTarget: true, Mountflags: unix.MS_RDONLY, Permissions: 0o700})
	wantCode(t, err, codes.Internal)
	if mounted, _, _ := core.MountedFrom(dir+"/ro", ""); mounted {
		t.Error("it stayed mounted")
	}
}

func TestMountFormatsBlankDisksOnly(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	client, server := serve(t, nil)
	target := coretest.Dir(t) + "/disk"
	blank, _ := coretest.Disk(t, diskSize)
	req := &pb.MountRequest{Source: blank, Target: target, Fstype: "btrfs", CreateTarget: true, Permissions: 0o777}
	if got, err := client.Mount(t.Context(), req); err != nil || got.Error != int32(unix.EINVAL) {
		t.Fatalf("a blank disk without mkfs_if_needed: %v, %v", got, err)
	}
	req.MkfsIfNeeded = true
	if got, err := client.Mount(t.Context(), req); err != nil || got.Error != 0 {
		t.Fatalf("a blank disk: %v, %v", got, err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("mounted with %v, %v", info.Mode(), err)
	}

	other, _ := coretest.Disk(t, diskSize)
	if err := server.table.Run(t.Context(), "mkfs.ext4", "-q", other); err != nil {
		t.Fatal(err)
	}
	req = &pb.MountRequest{Source: other, Target: target + "2", Fstype: "btrfs", CreateTarget: true, MkfsIfNeeded: true}
	if got, err := client.Mount(t.Context(), req); err != nil || got.Error != int32(unix.EINVAL) {
		t.Errorf("an ext4 disk: %v, %v", got, err)
	}
	req.Fstype, req.MkfsIfNeeded = "ext4", false
	if got, err := client.Mount(t.Context(), req); err != nil || got.Error != 0 {
		t.Errorf("the ext4 disk is damaged: %v, %v", got, err)
	}
}

func TestMount9PRefuses(t *testing.T) {
	client, _ := serve(t, func(s *Server) {
		s.dialHost = func(_ context.Context, port uint32) (net.Conn, error) {
			return nil, errors.New("connection refused")
		}
	})
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		req  *pb.Mount9PRequest
		code codes.Code
	}{
		"no port":             {&pb.Mount9PRequest{Target: dir}, codes.InvalidArgument},
		"the port any":        {&pb.Mount9PRequest{Port: 1<<32 - 1, Target: dir}, codes.InvalidArgument},
		"a relative target":   {&pb.Mount9PRequest{Port: 16384, Target: "shared"}, codes.InvalidArgument},
		"nobody on that port": {&pb.Mount9PRequest{Port: 16384, Target: dir}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Mount9P(t.Context(), tt.req)
			wantCode(t, err, tt.code)
		})
	}
}
