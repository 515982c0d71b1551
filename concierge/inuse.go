package concierge

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A diskUse is a file that a VM has as a disk.
type diskUse struct {
	Dev      uint64 `json:"dev"`
	Ino      uint64 `json:"ino"`
	Writable bool   `json:"writable,omitempty"`
}

// reserveDisks keeps the disks of a plan for its VM: one that is written to is
// nobody else's, and neither is it read by others meanwhile.
func (s *Service) reserveDisks(v *vm, p *plan) error {
	var own []diskUse
	for i, d := range p.spec.Disks {
		var st unix.Stat_t
		raw, err := p.files[d.File].SyscallConn()
		if err != nil {
			return fmt.Errorf("disk %s: %w", deviceName(i), err)
		}
		if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", deviceName(i), err)
		}
		u := diskUse{Dev: st.Dev, Ino: st.Ino, Writable: !d.ReadOnly}
		for _, o := range own {
			if u.clashes(o) {
				return fmt.Errorf("the image of disk %s is named twice, and one of the two is writable", deviceName(i))
			}
		}
		own = append(own, u)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, u := range own {
		if who := s.userOf(u, v.key.uid, v); who != "" {
			return fmt.Errorf("the image of disk %s is in use by %s: stop it first", deviceName(i), who)
		}
	}
	v.disks = own
	return nil
}

// userOf names the VM, but for one, that has a disk which clashes with a use of
// the given user's, empty for none. The caller holds the service's lock.
func (s *Service) userOf(u diskUse, uid uint32, except *vm) string {
	for _, other := range s.vms {
		if other == except || !slices.ContainsFunc(other.disks, u.clashes) {
			continue
		}
		if other.key.uid == uid {
			return fmt.Sprintf("VM %q", other.key.name)
		}
		return "another owner's VM"
	}
	return ""
}

// checkUnused refuses an image of a store that some VM has as a disk.
func (s *Service) checkUnused(path string, uid uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if who := s.userOf(diskUse{Dev: st.Dev, Ino: st.Ino, Writable: true}, uid, nil); who != "" {
		return fmt.Errorf("its image is in use by %s: stop it first", who)
	}
	return nil
}

func (u diskUse) clashes(o diskUse) bool {
	return u.Dev == o.Dev && u.Ino == o.Ino && (u.Writable || o.Writable)
}
