package cicerone

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/appspb"
)

// DesktopAppeared shows a user's desktop, which has just come, the applications
// that are there: containers tell of changes only. A desktop that comes and goes
// all the time is shown them once at a time.
func (s *Service) DesktopAppeared(ctx context.Context, owner uint32) {
	s.mu.Lock()
	if _, busy := s.showing[owner]; busy {
		s.showing[owner] = ctx // who shows does it again
		s.mu.Unlock()
		return
	}
	s.showing[owner] = nil
	s.mu.Unlock()
	for ctx != nil {
		s.showAll(ctx, owner)
		s.mu.Lock()
		if ctx = s.showing[owner]; ctx == nil {
			delete(s.showing, owner)
		} else {
			s.showing[owner] = nil
		}
		s.mu.Unlock()
	}
}

func (s *Service) showAll(ctx context.Context, owner uint32) {
	var lists [][]byte
	for _, v := range s.own(func(v *vm) bool { return v.key.uid == owner }) {
		s.mu.Lock()
		for _, c := range v.sorted() {
			if c.apps != nil {
				lists = append(lists, c.apps)
			}
		}
		s.mu.Unlock()
	}
	for _, data := range lists {
		list := &appspb.ApplicationList{}
		if proto.Unmarshal(data, list) != nil {
			continue // it was written down by another version, and comes again with the next change
		}
		if err := s.showAgain(ctx, owner, list); err != nil {
			if !errors.Is(err, ErrNoDesktop) {
				s.log.Warn("the user's desktop does not take what a container has", "what", "list of applications", "vm", list.VmName, "owner", list.OwnerId, "err", err)
			}
			return // it is asked again when it comes again
		}
	}
}

func (s *Service) showAgain(ctx context.Context, owner uint32, list *appspb.ApplicationList) error {
	ctx, cancel := context.WithTimeout(ctx, desktopTimeout)
	defer cancel()
	return s.cfg.Desktop.UpdateApplicationList(ctx, owner, list)
}
