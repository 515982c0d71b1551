package tremplin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// Marks of an import that replaces a container.
const (
	finalKey = "user.auberge.final" // one that is whole and only lacks this name
	awayKey  = "user.auberge.away"  // one that had this name and is to go
)

func checkReplaceable(i incus.Instance) error {
	if i.Status != incus.Stopped {
		return fmt.Errorf("the container %s runs: stop it before it is replaced", i.Name)
	}
	return nil
}

// replace gives the new container its name, and only then removes the old one.
// If we end in the middle, removeLeftovers does the rest.
func (m *importing) replace(ctx context.Context, temp string) error {
	s := m.s
	old, missing, err := s.find(ctx, m.name)
	switch {
	case missing:
		return s.finish(ctx, temp, m.name)
	case err != nil:
		return err
	}
	if err := checkReplaceable(old); err != nil {
		return err
	}
	if err := s.incus.Change(ctx, temp, map[string]string{finalKey: m.name}, nil); err != nil {
		return err
	}
	// Under its other name it looks like a leftover.
	if err := s.incus.Change(ctx, m.name, map[string]string{awayKey: m.name}, nil); err != nil {
		return err
	}
	away := tempName("old")
	if err := s.incus.Rename(ctx, m.name, away); err != nil {
		return err
	}
	if err := s.finish(ctx, temp, m.name); err != nil {
		back, cancel := cleaning()
		defer cancel()
		if undo := s.putBack(back, away, m.name); undo != nil {
			s.left.add("the name of "+m.name, undo, func(ctx context.Context) error {
				err := s.incus.Rename(ctx, away, m.name)
				if incus.IsConflict(err) {
					return nil // there is another one by now
				}
				return err
			})
			return errors.Join(err, fmt.Errorf("the old container is called %s until Incus lets it have its name back: %w", away, undo))
		}
		return err
	}
	if err := s.incus.Change(ctx, m.name, map[string]string{finalKey: ""}, nil); err != nil {
		s.log.Warn("a mark stays in the container's settings", "container", m.name, "err", err)
	}
	s.discardNow(away)
	return nil
}

func (s *Server) putBack(ctx context.Context, away, name string) error {
	if err := s.ensureLxd(ctx); err != nil {
		return err
	}
	return s.incus.Rename(ctx, away, name)
}

// finishReplaced gives containers their names whose import ended in the middle
// of that.
func (s *Server) finishReplaced(ctx context.Context, all []incus.Instance) {
	for _, r := range unfinished(all) {
		if err := s.incus.Rename(ctx, r.from, r.to); err != nil {
			s.log.Error("a container keeps a name that is not its own", "container", r.from, "name", r.to, "err", err)
			continue
		}
		s.log.Info("an import that was cut short has left a whole container", "container", r.to, "was", r.from)
	}
}

type renaming struct{ from, to string }

// unfinished tells what is to be renamed so that nothing is lost: where nobody
// has a name, the new container gets it, or else the old one gets it back.
func unfinished(all []incus.Instance) []renaming {
	taken := map[string]bool{}
	for _, i := range all {
		taken[i.Name] = true
	}
	var list []renaming
	for _, key := range []string{finalKey, awayKey} {
		for _, i := range all {
			name := i.Config[key]
			if !strings.HasPrefix(i.Name, ownPrefix) || checkName(name) != nil || taken[name] {
				continue
			}
			taken[name] = true
			list = append(list, renaming{from: i.Name, to: name})
		}
	}
	return list
}
