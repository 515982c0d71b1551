package concierge

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// All that is said of a VM, the next service says too.
func TestRestartKeepsWhatIsKnown(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	before, err := s.GetState(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.VMs) != 1 || before.VMs[0]["started"] == nil {
		t.Fatalf("the state is %v", before)
	}
	s.Close()
	s = b.serve()
	after, err := s.GetState(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.VMs, after.VMs); diff != "" {
		t.Error(diff)
	}
	if before.Instance == after.Instance {
		t.Error("two services have one name")
	}
	b.stop(s, "x")
	b.gone()
}
