package concierge

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// resized waits until a resize has ended, and says how.
func (b *bed) resized(s *Service, req *pb.ResizeDiskImageRequest) *pb.DiskImageStatusResponse {
	b.t.Helper()
	r, err := s.ResizeDiskImage(b.t.Context(), alice, req)
	if err != nil {
		b.t.Fatal(err)
	}
	var st *pb.DiskImageStatusResponse
	await(b.t, "end of the resize", func() bool {
		st, err = s.DiskImageStatus(b.t.Context(), alice, &pb.DiskImageStatusRequest{CommandUuid: r.CommandUuid})
		if err != nil {
			b.t.Fatal(err)
		}
		return st.Status != pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS
	})
	return st
}

// termina is a request for a VM with a stateful disk.
func (b *bed) termina(s *Service, name string, size uint64) *pb.StartVmRequest {
	b.t.Helper()
	disk, err := s.CreateDiskImage(b.t.Context(), alice, &pb.CreateDiskImageRequest{VmName: name, DiskSize: size}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	memory := uint64(minMemoryMiB)
	if err := s.ConfigureVm(b.t.Context(), alice, name, Settings{MemoryMiB: &memory}); err != nil {
		b.t.Fatal(err)
	}
	req := withDisk(name, disk.DiskPath)
	req.StartTermina = true
	return req
}

// A disk that has the size already may have a file system that has not, when an
// earlier attempt failed between the two: that is not passed over.
func TestResizeIsTriedAgain(t *testing.T) {
	for fault, want := range map[string]pb.DiskImageStatus{
		"none": pb.DiskImageStatus_DISK_STATUS_RESIZED, "full": pb.DiskImageStatus_DISK_STATUS_FAILED,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Setenv(guestEnv, fault)
			b := newBed(t)
			s := b.serve()
			const size = 4 << 20
			start := b.termina(s, "x", size)
			if _, err := s.StartVm(t.Context(), alice, start, nil); err != nil {
				t.Fatal(err)
			}
			st := b.resized(s, &pb.ResizeDiskImageRequest{VmName: "x", DiskSize: size})
			if st.Status != want {
				t.Errorf("it ended with %v", st)
			}
			b.stop(s, "x")
		})
	}
}

// The file of a qcow2 image is smaller than the disk in it, which must not be
// cut off.
func TestResizeOfQcow2(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	image := make([]byte, 64<<10)
	copy(image, "QFI\xfb")
	binary.BigEndian.PutUint32(image[4:], 2)
	binary.BigEndian.PutUint64(image[24:], 1<<30)
	path := filepath.Join(s.storeDir(alice.Owner), fileName("x")+qcow2Suffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	memory := uint64(minMemoryMiB)
	if err := s.ConfigureVm(t.Context(), alice, "x", Settings{MemoryMiB: &memory}); err != nil {
		t.Fatal(err)
	}
	start := withDisk("x", path)
	start.Disks[0].ImageType = pb.DiskImageType_DISK_IMAGE_QCOW2
	if _, err := s.StartVm(t.Context(), alice, start, nil); err != nil {
		t.Fatal(err)
	}
	r, err := s.ResizeDiskImage(t.Context(), alice, &pb.ResizeDiskImageRequest{VmName: "x", DiskSize: 512 << 20})
	if err == nil || !strings.Contains(err.Error(), "cannot become smaller") {
		t.Errorf("half of the disk would be lost: %v, %v", r, err)
	}
	b.stop(s, "x")
}

// The disk of one VM may be lent to another one, and is not pulled away from
// under it.
func TestDiskOfAnotherVM(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	req := b.termina(s, "lender", 4<<20)
	req.Name, req.StartTermina = "borrower", false
	memory := uint64(minMemoryMiB)
	if err := s.ConfigureVm(t.Context(), alice, "borrower", Settings{MemoryMiB: &memory}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartVm(t.Context(), alice, req, nil); err != nil {
		t.Fatal(err)
	}
	destroy := &pb.DestroyDiskImageRequest{VmName: "lender"}
	if r, err := s.DestroyDiskImage(t.Context(), alice, destroy); err == nil || !strings.Contains(err.Error(), `in use by VM "borrower"`) {
		t.Errorf("destroyed: %v, %v", r, err)
	}
	resize := &pb.ResizeDiskImageRequest{VmName: "lender", DiskSize: 8 << 20}
	if r, err := s.ResizeDiskImage(t.Context(), alice, resize); err == nil || !strings.Contains(err.Error(), `in use by VM "borrower"`) {
		t.Errorf("resized: %v, %v", r, err)
	}
	b.stop(s, "borrower")
	if r, err := s.ResizeDiskImage(t.Context(), alice, resize); err != nil || r.Status != pb.DiskImageStatus_DISK_STATUS_RESIZED {
		t.Errorf("afterwards: %v, %v", r, err)
	}
	if r, err := s.DestroyDiskImage(t.Context(), alice, destroy); err != nil || r.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Errorf("afterwards: %v, %v", r, err)
	}
}
