package containers

import (
	"os"
	"path/filepath"
	"time"
)

// localtime is the link that names the time zone of the host, as vm_cicerone is
// told.
func (s *stack) localtime() string { return filepath.Join(s.Dir, "localtime") }

// setZone gives the host a time zone.
func (s *stack) setZone(name string) {
	s.t.Helper()
	if err := os.Symlink("/usr/share/zoneinfo/"+name, s.localtime()+".new"); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.localtime()+".new", s.localtime()); err != nil {
		s.t.Fatal(err)
	}
}

// awaitZone waits until shells in the container have a time zone, in its short
// form.
func (s *stack) awaitZone(want string) {
	s.t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.After(patience); ; {
		got := s.shell("date +%Z")
		if got == want {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("the container's time zone is %s, the host's is %s", got, want)
		}
	}
}
