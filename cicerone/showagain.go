package cicerone

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/appspb"
)

// DesktopAppeared shows a user's desktop, which has just come, the applications
// that are there: containers tell of changes only.
func (s *Service) DesktopAppeared(ctx context.Context, owner uint32) {
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
