package maitred

import (
	"os"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

func TestResize(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	const mib = 1 << 20
	stateful := coretest.Dir(t) + "/stateful"
	client, server := serve(t, func(s *Server) { s.statefulDir = stateful })
	resize := func(size uint64, want pb.ResizeFilesystemResponse_ResizeStatus) {
		t.Helper()
		r, err := client.ResizeFilesystem(t.Context(), &pb.ResizeFilesystemRequest{Size: size})
		if err != nil || r.Status != want {
			t.Fatalf("to %d: %v, %v; want %v", size, r, err, want)
		}
	}
	state := func() *pb.GetResizeStatusResponse {
		t.Helper()
		r, err := client.GetResizeStatus(t.Context(), &pb.EmptyMessage{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	_, err := client.ResizeFilesystem(t.Context(), &pb.ResizeFilesystemRequest{Size: 1 << 30})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = client.GetResizeStatus(t.Context(), &pb.EmptyMessage{})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = client.GetResizeBounds(t.Context(), &pb.EmptyMessage{})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = client.GetAvailableSpace(t.Context(), &pb.EmptyMessage{})
	wantCode(t, err, codes.FailedPrecondition)

	device, file := coretest.Disk(t, 1<<30)
	if r, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device}); err != nil || r.MountResult != pb.StartTerminaResponse_SUCCESS {
		t.Fatalf("%v, %v", r, err)
	}
	_, err = client.ResizeFilesystem(t.Context(), &pb.ResizeFilesystemRequest{})
	wantCode(t, err, codes.InvalidArgument)
	if s := state(); s.ResizeInProgress || s.CurrentSize != 1<<30 || s.TargetSize != 0 {
		t.Errorf("before: %v", s)
	}
	bounds, err := client.GetResizeBounds(t.Context(), &pb.EmptyMessage{})
	if err != nil || bounds.MinimumSize < 256*mib || bounds.MinimumSize > 512*mib {
		t.Fatalf("bounds: %v, %v", bounds, err)
	}
	space, err := client.GetAvailableSpace(t.Context(), &pb.EmptyMessage{})
	if err != nil || space.AvailableSpace < 512*mib || space.AvailableSpace > 1<<30 {
		t.Errorf("space: %v, %v", space, err)
	}
	settle := func(want uint64) {
		t.Helper()
		<-server.resize.done
		if s := state(); s.ResizeInProgress || s.CurrentSize != want || s.TargetSize != 0 {
			t.Errorf("afterwards: %v, want %d", s, want)
		}
	}
	// A balloon of the old size must not be in the way.
	if _, err := server.balloon().Adjust(0); err != nil {
		t.Fatal(err)
	}
	smaller := bounds.MinimumSize
	resize(smaller, pb.ResizeFilesystemResponse_STARTED)
	settle(smaller)
	resize(600*mib, pb.ResizeFilesystemResponse_STARTED)
	settle(600 * mib)
	// Only the call that mounts it takes the whole disk.
	if r, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device}); err != nil || r.MountResult != pb.StartTerminaResponse_SUCCESS {
		t.Fatalf("%v, %v", r, err)
	}
	settle(600 * mib)
	// Smaller than can be: it fails, and is as it was.
	resize(mib, pb.ResizeFilesystemResponse_STARTED)
	settle(600 * mib)

	// The disk grows while it is awaited; meanwhile no other can begin.
	resize(2<<30, pb.ResizeFilesystemResponse_STARTED)
	if s := state(); !s.ResizeInProgress || s.CurrentSize != 600*mib || s.TargetSize != 2<<30 {
		t.Errorf("under way: %v", s)
	}
	resize(700*mib, pb.ResizeFilesystemResponse_ALREADY_IN_PROGRESS)
	if _, err := client.UpdateStorageBalloon(t.Context(), &pb.UpdateStorageBalloonRequest{State: pb.StatefulDiskSpaceState_DISK_CRITICAL}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(server.balloon().Path); err == nil {
		t.Error("a balloon is in the way")
	}
	if err := os.Truncate(file, 2<<30); err != nil {
		t.Fatal(err)
	}
	loop, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	settle(2 << 30)

	// A disk that does not grow is not awaited beyond the VM's end.
	resize(4<<30, pb.ResizeFilesystemResponse_STARTED)
	server.resize.stop(time.Minute)
	if s := state(); s.ResizeInProgress || s.CurrentSize != 2<<30 {
		t.Errorf("after the end: %v", s)
	}
	resize(3<<30, pb.ResizeFilesystemResponse_FAILED)
}
