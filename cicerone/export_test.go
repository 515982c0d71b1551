package cicerone

// HostURL is a URL of a container in the terms of the host.
var HostURL = hostURL

// HoldSaves keeps what is of a VM from being written until release is called.
func HoldSaves(s *Service, cid uint32) (release func()) { return s.byCID(cid).saveTurn() }
