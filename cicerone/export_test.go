package cicerone

import (
	"os"
	"testing"
	"time"
)

// HostURL is a URL of a container in the terms of the host.
var HostURL = hostURL

// HoldSaves keeps what is of a VM from being written until release is called.
func HoldSaves(s *Service, cid uint32) (release func()) { return s.byCID(cid).saveTurn() }

// Forgive has a VM's guest say as much again as if it had been silent.
func Forgive(s *Service, cid uint32) {
	v := s.byCID(cid)
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*window{&v.openings, &v.messages, &v.strangers, &v.reports, &v.crashes, &v.metrics}
	for _, c := range v.containers {
		all = append(all, &c.messages, &c.lists[appList], &c.lists[mimeList])
	}
	for _, w := range all {
		w.n = 0
	}
}

// StreamTimes shortens for a test what is waited for at the end of a stream. It
// comes before the service, which ends before the times are as they were.
func StreamTimes(t *testing.T, end, why, cancel time.Duration) {
	oldEnd, oldWhy, oldCancel := streamEnd, streamWhy, streamCancel
	streamEnd, streamWhy, streamCancel = end, why, cancel
	t.Cleanup(func() { streamEnd, streamWhy, streamCancel = oldEnd, oldWhy, oldCancel })
}

// SlowDisk puts a disk in the place of the machine's, under the same rule.
func SlowDisk(t *testing.T, sync func(*os.File) error) {
	old := syncDisk
	syncDisk = sync
	t.Cleanup(func() { syncDisk = old })
}
