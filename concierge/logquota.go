package concierge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
)

// A storedLog is the log of a VM, with its old files.
type storedLog struct {
	path  string // of the current file
	bytes uint64
	last  time.Time // it was written
}

// logsOf lists the logs of a user's VMs of all labels.
func (s *Service) logsOf(uid uint32) ([]storedLog, error) {
	logs := map[string]*storedLog{}
	err := filepath.WalkDir(filepath.Join(s.cfg.StateDir, "logs", ownerDir(uid, "")), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		base, ok := logBase(path)
		fi, err := d.Info()
		if !ok || err != nil {
			return nil // no log, or removed meanwhile
		}
		l := logs[base]
		if l == nil {
			l = &storedLog{path: base}
			logs[base] = l
		}
		l.bytes += uint64(fi.Size())
		if fi.ModTime().After(l.last) {
			l.last = fi.ModTime()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add up the logs of uid %d: %w", uid, err)
	}
	var all []storedLog
	for _, l := range logs {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b storedLog) int { return a.last.Compare(b.last) })
	return all, nil
}

// logBase finds the current file's path by that of any file of a log.
func logBase(path string) (string, bool) {
	at := strings.LastIndex(path, ".log")
	if at < 0 {
		return "", false
	}
	rest := path[at+len(".log"):]
	return path[:at+len(".log")], rest == "" || len(rest) == 2 && rest[0] == '.'
}

// boundLogs makes room for the log of a VM that starts. The logs of a user's
// VMs that do not run go, the oldest first, when all of the user's are more
// than they may be; nobody can refuse to log, so that nothing is refused.
func (s *Service) boundLogs(v *vm) {
	limit := s.cfg.Quota.For(v.key.uid).Logs
	if limit == Unlimited {
		return
	}
	logs, err := s.logsOf(v.key.uid)
	if err != nil {
		v.log.Warn("the user's logs are not bounded", "err", err)
		return
	}
	total := uint64(0)
	for _, l := range logs {
		total += l.bytes
	}
	s.mu.Lock()
	used := map[string]bool{}
	for k := range s.vms {
		used[s.logPath(k)] = true
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	for _, l := range logs {
		if total <= limit {
			return
		}
		if used[l.path] {
			continue
		}
		if err := s.logs.Remove(ctx, l.path, v.log); err != nil {
			v.log.Warn("remove an old log", "path", l.path, "err", err)
			continue
		}
		total -= l.bytes
		v.log.Info("removed the log of a VM that does not run: the logs of its user are more than max-logs", "path", l.path)
		v.note(vmlog.Info, "the log of another VM was removed, because all logs together are more than %s", bytesWord(limit))
	}
}
