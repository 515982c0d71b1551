package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

func makeFIFO(path string, u testbed.User) error {
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return err
	}
	return os.Chown(path, int(u.UID), int(u.GID))
}

func TestDisks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)

	create := func(c *client, name, owner string, size uint64) *pb.CreateDiskImageResponse {
		t.Helper()
		var r pb.CreateDiskImageResponse
		c.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: name, CryptohomeId: owner, DiskSize: size}, &r)
		return &r
	}
	made := create(alice, "termina", "", 10<<30+1)
	if made.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
		t.Fatal(made)
	}
	if want := filepath.Join(b.StateDir, "disks/64101/dGVybWluYQ==.img"); made.DiskPath != want {
		t.Errorf("the disk is at %s, want %s", made.DiskPath, want)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(made.DiskPath, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 10<<30 || st.Blocks*512 > 1<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("size %d, on disk %d, mode %o; want a sparse 10 GiB that only the service can open", st.Size, st.Blocks*512, st.Mode)
	}
	again := create(alice, "termina", "", 1<<30)
	if again.Status != pb.DiskImageStatus_DISK_STATUS_EXISTS || again.DiskPath != made.DiskPath {
		t.Errorf("created twice: %v", again)
	}
	label := "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
	labelled := create(alice, "termina", label, 1<<30)
	if labelled.Status != pb.DiskImageStatus_DISK_STATUS_CREATED || labelled.DiskPath == made.DiskPath {
		t.Errorf("under a label: %v", labelled)
	}
	if r := create(bob, "termina", "", 2<<30); r.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
		t.Errorf("bob's: %v", r)
	}
	if r := create(alice, "x", "", 1000); r.Status != pb.DiskImageStatus_DISK_STATUS_FAILED || r.FailureReason == "" {
		t.Errorf("a thousand bytes: %v", r)
	}
	if r := create(alice, "x", "", 1<<63); r.Status == pb.DiskImageStatus_DISK_STATUS_CREATED || r.FailureReason == "" {
		t.Errorf("eight exbibytes: %v", r)
	}
	if r := create(alice, "auto", "", 0); r.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
		t.Errorf("a disk of the service's size: %v", r)
	}

	// The seed's answer and HEAD's.
	var seed pb.ListVmDisksSeedResponse
	alice.must("ListVmDisks", &pb.ListVmDisksRequest{}, &seed)
	if !seed.Success || !slices.Equal(seed.Images, []string{"auto", "termina"}) {
		t.Errorf("the seed's list: %v", &seed)
	}
	var head pb.ListVmDisksResponse
	alice.must("ListVmDisks", &pb.ListVmDisksRequest{VmName: "termina"}, &head)
	want := &pb.ListVmDisksResponse{Success: true, TotalSize: uint64(st.Blocks * 512), Images: []*pb.VmDiskInfo{{
		Name: "termina", Size: 10 << 30, Path: made.DiskPath, UserChosenSize: head.GetImages()[0].GetUserChosenSize(),
	}}}
	if diff := cmp.Diff(want, &head, protocmp.Transform()); diff != "" {
		t.Errorf("HEAD's list: %s", diff)
	}
	alice.must("ListVmDisks", &pb.ListVmDisksRequest{AllLocations: true}, &head)
	if len(head.Images) != 2 {
		t.Errorf("all locations: %v", &head)
	}

	var gone pb.DestroyDiskImageResponse
	alice.must("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: "termina"}, &gone)
	if gone.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Error(&gone)
	}
	if _, err := os.Stat(made.DiskPath); !os.IsNotExist(err) {
		t.Errorf("the image is still there: %v", err)
	}
	if _, err := os.Stat(labelled.DiskPath); err != nil {
		t.Errorf("the label's image went too: %v", err)
	}
	bob.must("ListVmDisks", &pb.ListVmDisksRequest{}, &seed)
	if !slices.Equal(seed.Images, []string{"termina"}) {
		t.Errorf("bob's list: %v", &seed)
	}
}
