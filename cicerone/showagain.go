package cicerone

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
)

// DesktopAppeared shows a user's desktop, which has just come, the applications
// and file types that are there: containers tell of changes only. A desktop that comes and goes
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
	type one struct {
		kind listKind
		data []byte
	}
	var lists []one
	for _, v := range s.own(func(v *vm) bool { return v.key.uid == owner }) {
		s.mu.Lock()
		for _, c := range v.sorted() {
			for kind, data := range c.kept {
				if data != nil {
					lists = append(lists, one{listKind(kind), data})
				}
			}
		}
		s.mu.Unlock()
	}
	for _, o := range lists {
		l := kinds[o.kind].empty()
		if proto.Unmarshal(o.data, l) != nil {
			continue // it was written down by another version, and comes again with the next change
		}
		if err := s.showList(ctx, owner, l); err != nil {
			if !errors.Is(err, ErrNoDesktop) {
				s.log.Warn("the user's desktop does not take what a container has", "what", o.kind, "vm", l.GetVmName(), "owner", l.GetOwnerId(), "err", err)
			}
			return // it is asked again when it comes again
		}
	}
}
