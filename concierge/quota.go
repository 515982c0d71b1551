package concierge

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
)

// vmQuota refuses one VM more than the owner may have. The caller holds the
// service's lock, under which the VM then gets its place in the table.
func (s *Service) vmQuota(uid uint32, limit uint64) error {
	n := uint64(0)
	for k := range s.vms {
		if k.uid == uid {
			n++
		}
	}
	if n < limit {
		return nil
	}
	return s.overQuota(uid, "max-vms", fmt.Sprintf("%d of at most %d VMs run or are stopping; stop one first", n, limit))
}

// reserveMemory keeps memory for a VM that starts: what its owner may have,
// and what the host has got. A VM counts for its owner until it has gone. For
// the host it counts only while it starts: afterwards the host's own number
// says what it has really taken.
func (s *Service) reserveMemory(v *vm, bytes uint64) error {
	limit := s.cfg.Quota.For(v.key.uid).Memory
	_, available := hostMemory()
	s.mu.Lock()
	defer s.mu.Unlock()
	var owners, starting uint64
	for _, other := range s.vms {
		if other == v {
			continue
		}
		if other.key.uid == v.key.uid {
			owners += other.reserved
		}
		if other.pledged {
			starting += other.reserved
		}
	}
	if owners > limit || bytes > limit-owners {
		return s.overQuota(v.key.uid, "max-memory", fmt.Sprintf("the VM needs %s of memory, and other VMs have %s of at most %s; stop one, or set less with ConfigureVm",
			bytesWord(bytes), bytesWord(owners), bytesWord(limit)))
	}
	if left := available - min(available, starting); bytes > left {
		also := ""
		if starting > 0 {
			also = fmt.Sprintf(" besides %d MiB for VMs that are starting", starting>>20)
		}
		return fmt.Errorf("the VM needs %d MiB of memory and the host has %d MiB to give%s; stop another VM or set less with ConfigureVm",
			bytes>>20, left>>20, also)
	}
	v.reserved, v.pledged = bytes, true
	return nil
}

// settleMemory ends the part of a reservation that is for the host.
func (s *Service) settleMemory(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.pledged = false
}

// A diskPledge is space of a user's quota for an image that is being made or
// enlarged. Looking at the disk takes time, which nobody waits for with the
// lock held: who comes later counts the pledges of those before.
type diskPledge struct {
	uid   uint32
	path  string
	bytes uint64
}

// pledgeDisk reserves space for an image that is to be as large as asked, or
// as the quota leaves when flexible. release ends that: what was made is then
// on the disk, where others find it.
func (s *Service) pledgeDisk(uid uint32, path string, asked uint64, flexible bool) (granted uint64, release func(), err error) {
	limit := s.cfg.Quota.For(uid).Disk
	if limit == Unlimited {
		return asked, func() {}, nil
	}
	mine := &diskPledge{uid, path, asked}
	s.mu.Lock()
	var before []diskPledge
	for _, p := range s.pledges {
		if p.uid == uid {
			before = append(before, *p)
		}
	}
	s.pledges = append(s.pledges, mine)
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, p := range s.pledges {
			if p == mine {
				s.pledges = append(s.pledges[:i], s.pledges[i+1:]...)
				return
			}
		}
	}
	images, err := s.imagesOf(uid)
	if err != nil {
		release()
		return 0, nil, err
	}
	sizes := map[string]uint64{}
	for _, i := range images {
		sizes[i.path] = i.quota()
	}
	for _, p := range before {
		sizes[p.path] = max(sizes[p.path], p.bytes)
	}
	delete(sizes, path)
	used := uint64(0)
	for _, n := range sizes {
		used = add(used, n)
	}
	left := limit - min(limit, used)
	if asked > left && flexible && left >= minAutoDisk {
		asked = left / diskBlock * diskBlock
		s.mu.Lock()
		mine.bytes = asked
		s.mu.Unlock()
	}
	if asked > left {
		release()
		return 0, nil, s.overQuota(uid, "max-disk", fmt.Sprintf("the disk needs %s, and other disks have %s of at most %s, counted as large as their guests see them; destroy one, or ask for less",
			bytesWord(asked), bytesWord(used), bytesWord(limit)))
	}
	return asked, release, nil
}

// A storedImage is a disk image in somebody's store.
type storedImage struct {
	path string
	// virtual is its size for a guest, allocated what it takes of the disk, in
	// bytes.
	virtual, allocated uint64
}

// quota is what an image counts: all that it can come to take.
func (i storedImage) quota() uint64 { return max(i.virtual, i.allocated) }

// imagesOf lists a user's disk images of all labels.
func (s *Service) imagesOf(uid uint32) ([]storedImage, error) {
	var images []storedImage
	store := s.storeDir(policy.Owner{UID: uid})
	err := filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile, or never there
		case err != nil:
			return err
		case d.IsDir():
			if rest, _ := filepath.Rel(store, path); path != store && !strings.HasPrefix(rest, "@") {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		if i, ok := imageAt(path); ok {
			images = append(images, i)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add up the disk images of uid %d: %w", uid, err)
	}
	return images, nil
}

// imageAt looks at an image, and says whether there is one.
func imageAt(path string) (storedImage, bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return storedImage{}, false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return storedImage{}, false
	}
	i := storedImage{path: path, virtual: uint64(st.Size), allocated: uint64(st.Blocks) * 512}
	if isQcow2Name(path) {
		// One that cannot be read counts by what it takes.
		if n, err := qcow2Size(f); err == nil {
			i.virtual = uint64(n)
		}
	}
	return i, true
}

// add adds without going over the largest number.
func add(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
