package maitred

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestConfigureContainerGuest(t *testing.T) {
	root := t.TempDir()
	mkdirs(t, root+"/dev")
	client, _ := serve(t, func(s *Server) { s.root = root })
	for _, token := range []string{"5f1f0e7a-54b4-4ef0-9d5e-0123456789ab", "5F1F0E7A-54B4-4EF0-9D5E-0123456789AC"} {
		_, err := client.ConfigureContainerGuest(t.Context(), &pb.ConfigureContainerGuestRequest{ContainerToken: token, VmUsername: "emil"})
		wantCode(t, err, codes.OK)
		info, err := os.Stat(root + tokenPath)
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("the token's file is %v, %v", info.Mode(), err)
		}
		if data, _ := os.ReadFile(root + tokenPath); string(data) != token {
			t.Errorf("the token's file holds %q", data)
		}
	}
	before, _ := os.ReadFile(root + tokenPath)
	for _, token := range []string{"", "5f1f0e7a", strings.Repeat("x", 36), strings.Repeat("-", 36),
		"5f1f0e7a-54b4-4ef0-9d5e-0123456789ab\n", "5f1f0e7a-54b4-4ef0-9d5e-0123456789\n\n"} {
		_, err := client.ConfigureContainerGuest(t.Context(), &pb.ConfigureContainerGuestRequest{ContainerToken: token})
		wantCode(t, err, codes.InvalidArgument)
	}
	if after, _ := os.ReadFile(root + tokenPath); string(after) != string(before) {
		t.Errorf("the token's file holds %q", after)
	}
	if entries, _ := os.ReadDir(root + "/dev"); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestSetTimezone(t *testing.T) {
	root := t.TempDir()
	mkdirs(t, root+"/etc", root+"/usr/share/zoneinfo/Europe")
	writeFile(t, root+"/usr/share/zoneinfo/Europe/Paris", "TZif2")
	client, _ := serve(t, func(s *Server) { s.root = root })
	_, err := client.SetTimezone(t.Context(), &pb.SetTimezoneRequest{TimezoneName: "Europe/Paris"})
	wantCode(t, err, codes.OK)
	if got, err := os.Readlink(root + "/etc/localtime"); err != nil || got != "/usr/share/zoneinfo/Europe/Paris" {
		t.Errorf("/etc/localtime points to %q, %v", got, err)
	}
	for name, code := range map[string]codes.Code{"": codes.InvalidArgument, "../x": codes.InvalidArgument, "Europe/Atlantis": codes.NotFound} {
		_, err := client.SetTimezone(t.Context(), &pb.SetTimezoneRequest{TimezoneName: name})
		wantCode(t, err, code)
	}
}

func TestSetUpUser(t *testing.T) {
	root := t.TempDir()
	mkdirs(t, root+"/etc")
	writeFile(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\n")
	writeFile(t, root+"/etc/group", "root:x:0:\nsudo:x:27:\n")
	client, _ := serve(t, func(s *Server) { s.root = root })
	for _, tt := range []struct {
		req  *pb.SetUpUserRequest
		want *pb.SetUpUserResponse // without the reason
	}{
		{&pb.SetUpUserRequest{Username: "emil", GroupNames: []string{"sudo"}}, &pb.SetUpUserResponse{Success: true, Username: "emil"}},
		{&pb.SetUpUserRequest{Username: "frida"}, &pb.SetUpUserResponse{Success: true, Username: "emil"}},
		{&pb.SetUpUserRequest{Username: "frida", Uid: proto.Uint32(1001)}, &pb.SetUpUserResponse{Success: true, Username: "frida"}},
		{&pb.SetUpUserRequest{Username: "frida", Uid: proto.Uint32(1002)}, &pb.SetUpUserResponse{}},
		{&pb.SetUpUserRequest{Username: "gustav", Uid: proto.Uint32(0)}, &pb.SetUpUserResponse{}},
		{&pb.SetUpUserRequest{Username: "Gustav"}, &pb.SetUpUserResponse{}},
	} {
		got, err := client.SetUpUser(t.Context(), tt.req)
		if err != nil {
			t.Fatal(err)
		}
		if got.Success == (got.FailureReason != "") {
			t.Errorf("%v: %v", tt.req, got)
		}
		got.FailureReason = ""
		if !proto.Equal(got, tt.want) {
			t.Errorf("%v: %v", tt.req, got)
		}
	}
	if data, _ := os.ReadFile(root + "/etc/passwd"); !strings.Contains(string(data), "emil:x:1000:1000::/home/emil:/bin/sh\n") {
		t.Errorf("passwd holds %q", data)
	}
}

func TestPrepareToSuspend(t *testing.T) {
	client, server := serve(t, nil)
	for range 2 {
		_, err := client.PrepareToSuspend(t.Context(), &pb.EmptyMessage{})
		wantCode(t, err, codes.OK)
	}
	// A disk that hangs holds one caller, not those who come later.
	server.syncing <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := server.PrepareToSuspend(ctx, &pb.EmptyMessage{})
	wantCode(t, err, codes.Canceled)
}

func TestHostNetworkCalls(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS) {
		return
	}
	client, _ := serve(t, nil)
	_, err := client.OnHostNetworkChanged(t.Context(), &pb.EmptyMessage{})
	wantCode(t, err, codes.OK)
	_, err = client.ResetIPv6(t.Context(), &pb.EmptyMessage{})
	wantCode(t, err, codes.OK)
}

func TestUpdateStorageBalloon(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t)
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	update := func(state pb.StatefulDiskSpaceState, free int64, code codes.Code) *pb.UpdateStorageBalloonResponse {
		t.Helper()
		r, err := client.UpdateStorageBalloon(t.Context(), &pb.UpdateStorageBalloonRequest{State: state, FreeSpaceBytes: free})
		wantCode(t, err, code)
		return r
	}
	update(pb.StatefulDiskSpaceState_DISK_LOW, 1<<30, codes.FailedPrecondition)
	if err := (core.MountPoint{Source: "tmpfs", Target: stateful, Type: "tmpfs", Options: "size=1g"}).Mount(); err != nil {
		t.Fatal(err)
	}
	update(pb.StatefulDiskSpaceState_DISK_NONE, 1<<30, codes.InvalidArgument)
	update(9, 1<<30, codes.InvalidArgument)
	update(pb.StatefulDiskSpaceState_DISK_LOW, -1, codes.InvalidArgument)
	for _, tt := range []struct {
		state pb.StatefulDiskSpaceState
		host  int64 // free there
		want  int64 // free here
	}{
		{pb.StatefulDiskSpaceState_DISK_NORMAL, 10 << 30, 1 << 30},
		{pb.StatefulDiskSpaceState_DISK_NORMAL, 1<<30 + 512<<20, 512 << 20},
		{pb.StatefulDiskSpaceState_DISK_LOW, 1<<30 + 256<<20, 256 << 20},
		{pb.StatefulDiskSpaceState_DISK_CRITICAL, 1<<30 + 256<<20, 64 << 20},
		{pb.StatefulDiskSpaceState_DISK_LOW, 0, 64 << 20},
		{pb.StatefulDiskSpaceState_DISK_NORMAL, 1<<63 - 1, 1 << 30},
	} {
		if r := update(tt.state, tt.host, codes.OK); r.GetResult() != pb.UpdateStorageBalloonResult_SUCCESS {
			t.Errorf("%v with %d: %v", tt.state, tt.host, r)
		}
		if got, err := core.FreeBytes(stateful); err != nil || got != tt.want {
			t.Errorf("%v with %d: %d are free, want %d (%v)", tt.state, tt.host, got, tt.want, err)
		}
	}
	server.balloon().Remove()
}

// A file system that gives no room is told.
func TestUpdateStorageBalloonThatFails(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	stateful := coretest.Dir(t)
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	device, _ := coretest.Disk(t, 256<<20)
	// Without extents it cannot allocate what is not written.
	if err := server.table.Run(t.Context(), "mkfs.ext4", "-q", "-O", "^extent,^64bit,^metadata_csum", device); err != nil {
		t.Fatal(err)
	}
	if err := (core.MountPoint{Source: device, Target: stateful, Type: "ext4"}).Mount(); err != nil {
		t.Fatal(err)
	}
	r, err := client.UpdateStorageBalloon(t.Context(), &pb.UpdateStorageBalloonRequest{State: pb.StatefulDiskSpaceState_DISK_CRITICAL})
	if err != nil || r.Result != pb.UpdateStorageBalloonResult_BALLOON_INFLATE_FAILED {
		t.Errorf("%v, %v", r, err)
	}
}
