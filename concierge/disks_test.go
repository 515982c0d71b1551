package concierge

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func itoa(n int) string { return fmt.Sprint(n) }

func (b *bed) create(s *Service, req *pb.CreateDiskImageRequest) *pb.CreateDiskImageResponse {
	b.t.Helper()
	resp, err := s.CreateDiskImage(b.t.Context(), alice, req, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

// Of many who create a disk at once, one does.
func TestCreateAtOnce(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	var mu sync.Mutex
	count := map[pb.DiskImageStatus]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r := b.create(s, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20})
			mu.Lock()
			count[r.Status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if count[pb.DiskImageStatus_DISK_STATUS_CREATED] != 1 || count[pb.DiskImageStatus_DISK_STATUS_EXISTS] != 7 {
		t.Errorf("%v", count)
	}
	entries, err := os.ReadDir(s.storeDir(alice.Owner))
	if err != nil || len(entries) != 1 {
		t.Errorf("the store holds %v, %v", entries, err)
	}
}

func TestCreatePreallocated(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	r := b.create(s, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 3<<20 + 1,
		AllocationType: pb.DiskImageAllocationType_DISK_ALLOCATION_TYPE_PREALLOCATE})
	var st unix.Stat_t
	if err := unix.Stat(r.DiskPath, &st); err != nil || st.Size != 3<<20 || st.Blocks*512 < 3<<20 {
		t.Errorf("%d bytes, %d on the disk, %v", st.Size, st.Blocks*512, err)
	}
	// More than there is takes nothing. (A tenth of an exbibyte fits no disk.)
	r = b.create(s, &pb.CreateDiskImageRequest{VmName: "y", DiskSize: 1 << 57,
		AllocationType: pb.DiskImageAllocationType_DISK_ALLOCATION_TYPE_PREALLOCATE})
	if r.Status != pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE || r.FailureReason == "" {
		t.Errorf("far too large: %v", r)
	}
	if disks, _, err := s.listDisks(alice.Owner, &pb.ListVmDisksRequest{}); err != nil || len(disks) != 1 {
		t.Errorf("the store holds %v, %v", disks, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	for name, test := range map[string]struct {
		req  *pb.CreateDiskImageRequest
		want string
	}{
		"another type":     {&pb.CreateDiskImageRequest{ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2}, "only raw"},
		"another location": {&pb.CreateDiskImageRequest{StorageLocation: pb.StorageLocation_STORAGE_CRYPTOHOME_PLUGINVM}, "storage location"},
		"a file system":    {&pb.CreateDiskImageRequest{FilesystemType: pb.FilesystemType_EXT4}, "guest formats"},
		"its options":      {&pb.CreateDiskImageRequest{MkfsOpts: []string{"-F"}}, "guest formats"},
		"a source":         {&pb.CreateDiskImageRequest{SourceSize: 1}, "not supported"},
		"parameters":       {&pb.CreateDiskImageRequest{Params: []string{"x"}}, "not supported"},
		"a small one":      {&pb.CreateDiskImageRequest{DiskSize: minDisk - 1}, "smaller"},
		"an endless one":   {&pb.CreateDiskImageRequest{DiskSize: 1<<64 - 1}, "too large"},
	} {
		test.req.VmName = "x"
		r, err := s.CreateDiskImage(t.Context(), alice, test.req, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v; want %q", name, r, err, test.want)
		}
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := s.CreateDiskImage(t.Context(), alice, &pb.CreateDiskImageRequest{VmName: "x"}, []*os.File{null}); err == nil {
		t.Error("a descriptor was ignored")
	}
	if left, _ := filepath.Glob(filepath.Join(s.storeDir(alice.Owner), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A VM with two images is nobody's guess.
func TestTwoImages(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	raw := b.create(s, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}).DiskPath
	q := strings.TrimSuffix(raw, ".img") + ".qcow2"
	if err := os.WriteFile(q, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := s.CreateDiskImage(t.Context(), alice, &pb.CreateDiskImageRequest{VmName: "x"}, nil); err == nil || !strings.Contains(err.Error(), "two disk images") {
		t.Errorf("create: %v, %v", r, err)
	}
	if r, err := s.DestroyDiskImage(t.Context(), alice, &pb.DestroyDiskImageRequest{VmName: "x"}); err == nil || !strings.Contains(err.Error(), "two disk images") {
		t.Errorf("destroy: %v, %v", r, err)
	}
	for _, path := range []string{raw, q} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	// With one of them gone, the other is the VM's.
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	if r := b.create(s, &pb.CreateDiskImageRequest{VmName: "x"}); r.Status != pb.DiskImageStatus_DISK_STATUS_EXISTS || r.DiskPath != q {
		t.Errorf("create beside a qcow2: %v", r)
	}
	if r, err := s.DestroyDiskImage(t.Context(), alice, &pb.DestroyDiskImageRequest{VmName: "x"}); err != nil || r.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Errorf("destroy a qcow2: %v, %v", r, err)
	}
	if _, err := os.Stat(q); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// Only images are listed, whatever else has got into a store.
func TestListIgnoresWhatIsNoImage(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	b.create(s, &pb.CreateDiskImageRequest{VmName: "b", DiskSize: 1 << 20})
	b.create(s, &pb.CreateDiskImageRequest{VmName: "a"})
	store := s.storeDir(alice.Owner)
	for _, name := range []string{"README", "x.img", fileName("c") + ".iso", "dGVy\nbWluYQ==.img", fileName("..") + ".img"} {
		if err := os.WriteFile(filepath.Join(store, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(store, fileName("link")+".img")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(store, fileName("dir")+".img"), 0o700); err != nil {
		t.Fatal(err)
	}
	disks, total, err := s.listDisks(alice.Owner, &pb.ListVmDisksRequest{})
	if err != nil || len(disks) != 2 || disks[0].Name != "a" || disks[1].Name != "b" || total > 1<<20 {
		t.Errorf("%v, %d bytes, %v", disks, total, err)
	}
	// Another place to store holds nothing, and is no failure.
	resp, err := s.ListVmDisks(t.Context(), alice, &pb.ListVmDisksRequest{StorageLocation: pb.StorageLocation_STORAGE_CRYPTOHOME_PLUGINVM})
	if seed, ok := resp.(*pb.ListVmDisksSeedResponse); err != nil || !ok || !seed.Success || len(seed.Images) != 0 {
		t.Errorf("another location: %v, %v", resp, err)
	}
	// Nor is an owner who has nothing.
	if disks, _, err := s.listDisks(policy.Owner{UID: 64199}, &pb.ListVmDisksRequest{}); err != nil || len(disks) != 0 {
		t.Errorf("an empty store: %v, %v", disks, err)
	}
	if _, _, err := s.listDisks(alice.Owner, &pb.ListVmDisksRequest{VmName: "a/b"}); err == nil {
		t.Error("a name that is none was looked for")
	}
}

// DestroyDiskImage stops the VM first.
func TestDestroyStops(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	path := b.create(s, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}).DiskPath
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	b.events.take()
	r, err := s.DestroyDiskImage(t.Context(), alice, &pb.DestroyDiskImageRequest{VmName: "x"})
	if err != nil || r.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Fatalf("%v, %v", r, err)
	}
	if got, want := b.events.take(), []string{"VmStopping x", "VmStopped x"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the image is still there: %v", err)
	}
	b.gone()
}
