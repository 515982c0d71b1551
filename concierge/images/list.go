package images

import (
	"time"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// An Image is one that is in the store, packaged, or both.
type Image struct {
	Key, Kernel, Suite string
	Created            time.Time
	// Size is that of its files, in bytes.
	Size int64
	// Current is set for the image that new VMs get, Packaged for the one that
	// an update would take into use, Previous for that to which a rollback
	// would go back. Stored means that the store has it.
	Current, Packaged, Previous, Stored bool
}

// List lists all images, the current one first and then those that came last.
func (s *Store) List() []Image {
	st := s.now()
	var list []Image
	add := func(m *image.Manifest) *Image {
		for i := range list {
			if list[i].Key == m.Key {
				return &list[i]
			}
		}
		i := Image{Key: m.Key, Kernel: m.KernelRelease, Suite: m.Suite, Created: m.Created}
		for _, f := range m.Files {
			i.Size += f.Size
		}
		list = append(list, i)
		return &list[len(list)-1]
	}
	current := s.whole(st.Current)
	keys := s.keys()
	if current {
		keys = append([]string{st.Current}, keys...)
	}
	packaged, _, err := readManifest(s.packaged)
	if err == nil && !current { // it is used where it is
		add(packaged).Current = true
	}
	previous := false
	for _, key := range keys {
		if !s.whole(key) {
			continue
		}
		if m, _, err := readManifest(s.path(key)); err == nil {
			i := add(m)
			i.Stored = true
			i.Current = i.Current || key == st.Current
		}
	}
	for _, key := range st.Earlier {
		for i := range list {
			if !previous && list[i].Key == key && list[i].Stored {
				list[i].Previous, previous = true, true
			}
		}
	}
	if err == nil {
		add(packaged).Packaged = true
	}
	return list
}
