package concierge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/auberge-vm/auberge/concierge/images"
	"github.com/auberge-vm/auberge/policy"
)

// imageTimeout bounds what the service itself does about an image.
const imageTimeout = 10 * time.Minute

// installedImage is the image of a new VM. It is looked for at every start: a
// new one is used by the next VM.
func (s *Service) installedImage() (image, error) {
	var first error
	for _, dir := range s.images.Directories() {
		img, err := loadImage(dir)
		if err == nil {
			if first != nil {
				s.log.Error("the guest image in use cannot be used; another one is", "image", img.key, "in", dir, "err", first)
			}
			return img, nil
		}
		if first == nil {
			first = err
		}
	}
	return image{}, first
}

// updateImage takes the packaged image into use if it should be by itself, and
// removes old ones. VMs can be started meanwhile.
func (s *Service) updateImage() {
	ctx, cancel := context.WithTimeout(s.quit, imageTimeout)
	defer cancel()
	if s.cfg.UpdateImage {
		changed, err := s.images.Update(ctx, true)
		switch {
		case s.quit.Err() != nil:
			return
		case errors.Is(err, images.ErrNotInstalled):
			s.log.Info("no guest image is packaged", "err", err)
		case err != nil:
			s.log.Error("the packaged guest image is not taken into use", "err", err)
		case changed:
			s.log.Info("the packaged guest image is taken into use")
		}
	}
	s.pruneImages()
}

func (s *Service) pruneImages() {
	used := map[string]bool{}
	s.mu.Lock()
	for _, v := range s.vms {
		v.mu.Lock()
		used[v.image] = true
		v.mu.Unlock()
	}
	s.mu.Unlock()
	if err := s.images.Prune(used); err != nil && !errors.Is(err, images.ErrBusy) {
		s.log.Warn("old guest images stay", "err", err)
	}
}

// ListImages lists the guest images that there are, the one that new VMs get
// first, each with those VMs that run it and that the caller may see.
func (s *Service) ListImages(_ context.Context, sub policy.Subject) ([]map[string]any, error) {
	users := map[string][]string{}
	for _, v := range s.visible(sub, "") {
		v.mu.Lock()
		users[v.image] = append(users[v.image], v.owner.Word+"/"+v.key.name)
		v.mu.Unlock()
	}
	var list []map[string]any
	for _, i := range s.images.List() {
		list = append(list, describeImage(i, users[i.Key]))
		delete(users, i.Key)
	}
	// Those that are removed run on.
	for _, v := range s.visible(sub, "") {
		if names := users[v.image]; v.image != "" && names != nil {
			list = append(list, map[string]any{"key": v.image, "vms": names})
			delete(users, v.image)
		}
	}
	return list, nil
}

func describeImage(i images.Image, vms []string) map[string]any {
	if vms == nil {
		vms = []string{}
	}
	return map[string]any{
		"key": i.Key, "kernel": i.Kernel, "suite": i.Suite, "created": uint64(max(0, i.Created.UnixMicro())), "size": uint64(i.Size),
		"current": i.Current, "packaged": i.Packaged, "previous": i.Previous, "stored": i.Stored, "vms": vms,
	}
}

// UpdateImage takes the packaged image into use for VMs that start from now
// on, and returns what it is. VMs that run keep theirs.
func (s *Service) UpdateImage(ctx context.Context, sub policy.Subject) (map[string]any, error) {
	changed, err := s.images.Update(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("take the packaged guest image into use: %w", err)
	}
	if changed {
		s.log.Info("the packaged guest image is taken into use", "by", sub.Caller.UID)
	}
	s.pruneImages()
	return s.currentImage(changed)
}

// RollbackImage goes back to the image before, and returns what it is. It
// stays until UpdateImage is called or another image is packaged.
func (s *Service) RollbackImage(_ context.Context, sub policy.Subject) (map[string]any, error) {
	key, err := s.images.Rollback()
	if err != nil {
		return nil, fmt.Errorf("go back to the guest image before: %w", err)
	}
	s.log.Info("the guest image before is in use again", "image", key, "by", sub.Caller.UID)
	return s.currentImage(true)
}

func (s *Service) currentImage(changed bool) (map[string]any, error) {
	for _, i := range s.images.List() {
		if i.Current {
			d := describeImage(i, nil)
			d["changed"] = changed
			return d, nil
		}
	}
	return nil, errors.New("the guest image has gone again")
}
