package rootfs

import (
	"encoding/json"
	"fmt"
	"os"
	"syscall"
)

// nobody stands for owners that the container cannot have.
const nobody = 65534

// An IDMap says how the owners in a container are stored on the disk: not at
// all where the kernel maps them at the mount, shifted otherwise.
type IDMap []IDRange

// An IDRange is a part of an IDMap, as Incus writes it.
type IDRange struct {
	IsUID  bool  `json:"Isuid"`
	IsGID  bool  `json:"Isgid"`
	HostID int64 `json:"Hostid"`
	NSID   int64 `json:"Nsid"`
	Count  int64 `json:"Maprange"`
}

// maxRanges bounds an IDMap.
const maxRanges = 64

// ParseIDMap reads what Incus keeps of a container under
// volatile.last_state.idmap; there is none before its first start.
func ParseIDMap(text string) (IDMap, error) {
	if text == "" {
		return nil, nil
	}
	var m IDMap
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, fmt.Errorf("the map of the container's owners is not understood: %w", err)
	}
	if len(m) > maxRanges {
		return nil, fmt.Errorf("the map of the container's owners has %d ranges", len(m))
	}
	for _, r := range m {
		if r.HostID < 0 || r.NSID < 0 || r.Count < 1 || r.HostID+r.Count > 1<<32 || r.NSID+r.Count > 1<<32 || r.HostID > 1<<32 || r.NSID > 1<<32 {
			return nil, fmt.Errorf("the map of the container's owners has a range that cannot be: %+v", r)
		}
	}
	return m, nil
}

// ToDisk returns the uid on the disk of one in the container.
func (m IDMap) ToDisk(uid uint32) int { return m.out(uid, func(r IDRange) bool { return r.IsUID }) }

// GroupToDisk is ToDisk for groups.
func (m IDMap) GroupToDisk(gid uint32) int {
	return m.out(gid, func(r IDRange) bool { return r.IsGID })
}

func (m IDMap) out(id uint32, of func(IDRange) bool) int {
	if len(m) == 0 {
		return int(id)
	}
	for _, r := range m {
		if of(r) && int64(id) >= r.NSID && int64(id) < r.NSID+r.Count {
			return int(r.HostID + int64(id) - r.NSID)
		}
	}
	return nobody
}

// FromDisk returns the owner in the container of a file on the disk.
func (m IDMap) FromDisk(info os.FileInfo) (uid, gid int) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	return m.in(st.Uid, func(r IDRange) bool { return r.IsUID }), m.in(st.Gid, func(r IDRange) bool { return r.IsGID })
}

func (m IDMap) in(id uint32, of func(IDRange) bool) int {
	if len(m) == 0 {
		return int(id)
	}
	for _, r := range m {
		if of(r) && int64(id) >= r.HostID && int64(id) < r.HostID+r.Count {
			return int(r.NSID + int64(id) - r.HostID)
		}
	}
	return nobody
}
