package cicerone

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
