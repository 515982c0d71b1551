package concierge

import (
	"fmt"

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
	for _, other := range s.vms {
		if other == v {
			continue
		}
		for i, u := range own {
			for _, o := range other.disks {
				if !u.clashes(o) {
					continue
				}
				name := "another owner's VM"
				if other.key.uid == v.key.uid {
					name = fmt.Sprintf("VM %q", other.key.name)
				}
				return fmt.Errorf("the image of disk %s is in use by %s: stop it first", deviceName(i), name)
			}
		}
	}
	v.disks = own
	return nil
}

func (u diskUse) clashes(o diskUse) bool {
	return u.Dev == o.Dev && u.Ino == o.Ino && (u.Writable || o.Writable)
}
