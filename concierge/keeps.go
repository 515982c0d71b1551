package concierge

import (
	"io/fs"
	"path/filepath"
)

// Keeps says whether a user has VMs here, or has left disk images, settings or
// logs: an administrator has to reach those of a user who was removed.
func (s *Service) Keeps(uid uint32) bool {
	s.mu.Lock()
	for k := range s.vms {
		if k.uid == uid {
			s.mu.Unlock()
			return true
		}
	}
	s.mu.Unlock()
	for _, what := range []string{"disks", "settings", "logs"} {
		if hasFile(filepath.Join(s.cfg.StateDir, what, ownerDir(uid, ""))) {
			return true
		}
	}
	return false
}

// hasFile says whether there is a file anywhere beneath a directory. Empty
// directories stay when what was in them goes.
func hasFile(dir string) (found bool) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = true
			return fs.SkipAll
		}
		return nil // what cannot be read is as good as not there
	})
	return found
}
