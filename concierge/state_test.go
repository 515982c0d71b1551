package concierge

import (
	"testing"
)

// What the state tells of a running VM is the same after a restart.
func TestStateAfterARestart(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	tell := func(s *Service) map[string]any {
		t.Helper()
		st, err := s.GetState(t.Context(), alice)
		if err != nil || len(st.VMs) != 1 {
			t.Fatal(st, err)
		}
		return st.VMs[0]
	}
	before := tell(s)
	if before["started"] == nil {
		t.Errorf("nobody knows when it started: %v", before)
	}
	s.Close()
	s = b.serve()
	after := tell(s)
	for key, value := range before {
		if after[key] != value {
			t.Errorf("%s was %v and is %v", key, value, after[key])
		}
	}
	b.stop(s, "x")
	b.gone()
}
