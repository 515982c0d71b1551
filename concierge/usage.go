package concierge

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/auberge-vm/auberge/policy"
)

// A Usage is what a user has, beside what the user may have.
type Usage struct {
	UID uint32
	// User is the user's name, empty when there is no such user any more.
	User   string
	Limits Limits

	VMs    uint64
	Memory uint64 // bytes that count for VMs that run

	Images int
	// Disk is what counts against the quota, Virtual how large the images are
	// for their guests and Allocated what they take of the host's disk, all in
	// bytes.
	Disk, Virtual, Allocated uint64
	Logs                     uint64 // bytes
}

// describe is a usage in plain values. A limit that is none is not there.
func (u Usage) describe() map[string]any {
	d := map[string]any{
		"uid": u.UID, "vms": u.VMs, "memory": u.Memory, "images": uint32(u.Images), "disk": u.Disk,
		"virtual": u.Virtual, "allocated": u.Allocated, "logs": u.Logs,
	}
	if u.User != "" {
		d["user"] = u.User
	}
	for name, limit := range map[string]uint64{
		"max_vms": u.Limits.VMs, "max_memory": u.Limits.Memory, "max_disk": u.Limits.Disk, "max_logs": u.Limits.Logs,
	} {
		if limit != Unlimited {
			d[name] = limit
		}
	}
	return d
}

// usageOf adds up what a user has.
func (s *Service) usageOf(uid uint32) (Usage, error) {
	u := Usage{UID: uid, Limits: s.cfg.Quota.For(uid)}
	if found, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		u.User = found.Username
	}
	images, err := s.imagesOf(uid)
	if err != nil {
		return u, err
	}
	u.Images = len(images)
	for _, i := range images {
		u.Virtual, u.Allocated, u.Disk = add(u.Virtual, i.virtual), add(u.Allocated, i.allocated), add(u.Disk, i.quota())
	}
	logs, err := s.logsOf(uid)
	if err != nil {
		return u, err
	}
	for _, l := range logs {
		u.Logs += l.bytes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.vms {
		if k.uid == uid {
			u.VMs++
			u.Memory += v.reserved
		}
	}
	return u, nil
}

// GetQuota tells the owner's usage and limits.
func (s *Service) GetQuota(_ context.Context, sub policy.Subject) (map[string]any, error) {
	u, err := s.usageOf(sub.Owner.UID)
	if err != nil {
		return nil, err
	}
	return u.describe(), nil
}

// ListDiskUsage tells the usage of everybody who has something, also of users
// who are not there any more.
func (s *Service) ListDiskUsage(context.Context, policy.Subject) ([]map[string]any, error) {
	usages, err := s.Usages()
	if err != nil {
		return nil, err
	}
	var all []map[string]any
	for _, u := range usages {
		all = append(all, u.describe())
	}
	return all, nil
}

// usersWithState lists the users who have disks, logs, settings, keys or VMs.
func (s *Service) usersWithState() ([]uint32, error) {
	var uids []uint32
	for _, kind := range []string{"disks", "logs", "settings", "sshkeys"} {
		entries, err := os.ReadDir(filepath.Join(s.cfg.StateDir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil && e.IsDir() {
				uids = append(uids, uint32(n))
			}
		}
	}
	s.mu.Lock()
	for k := range s.vms {
		uids = append(uids, k.uid)
	}
	s.mu.Unlock()
	slices.Sort(uids)
	return slices.Compact(uids), nil
}
