package concierge

import (
	"os"
	"path/filepath"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A user who was removed is known by what is left of it: disks, settings, logs
// under any label. Directories alone are nothing.
func TestWhoHasLeftSomething(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if s.Keeps(7) {
		t.Error("uid 7 has left something before it was there")
	}
	if _, err := s.CreateDiskImage(t.Context(), subject(7), &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 1 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	if !s.Keeps(7) || s.Keeps(70) || s.Keeps(0) {
		t.Error("the disk of uid 7 is not seen, or somebody else's")
	}
	if _, err := s.DestroyDiskImage(t.Context(), subject(7), &pb.DestroyDiskImageRequest{VmName: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.cfg.StateDir, "disks", "7", "@label"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s.Keeps(7) {
		t.Error("uid 7 has nothing any more")
	}
	labelled := subject(7)
	labelled.Owner.Label, labelled.Owner.All = "x", false
	if err := s.ConfigureVm(t.Context(), labelled, "y", Settings{CPUs: new(uint32(1))}); err != nil {
		t.Fatal(err)
	}
	if !s.Keeps(7) {
		t.Error("the settings of a label of uid 7 are not seen")
	}
}
