package mime

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

const (
	// maxMessage is what the host takes, less some room for the rest of the
	// message.
	maxMessage = 4<<20 - 64<<10
	// entrySize is what an entry costs beside its text, at most.
	entrySize = 16
)

// Cache is the cache of a directory of data, /usr/share for instance.
func Cache(data string) string { return filepath.Join(data, "mime", "mime.cache") }

// Load joins the caches of directories of data; the first that knows an
// extension counts. One that cannot be read is left out, and the error says
// so; a missing one is no error. The whole fits into a message to the host.
func Load(dataDirs []string) (map[string]string, error) {
	all := map[string]string{}
	var failed []error
	for _, dir := range dataDirs {
		data, _, err := keyfile.Read(Cache(dir), maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var types map[string]string
		if err == nil {
			types, err = Parse(data)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for ext, name := range types {
			if _, known := all[ext]; !known {
				all[ext] = name
			}
		}
	}
	return fitting(all), errors.Join(failed...)
}

// fitting leaves out what is too much for a message, the last by name.
func fitting(all map[string]string) map[string]string {
	size := 0
	for ext, name := range all {
		size += len(ext) + len(name) + entrySize
	}
	if size <= maxMessage {
		return all
	}
	few, size := map[string]string{}, 0
	for _, ext := range slices.Sorted(maps.Keys(all)) {
		if size += len(ext) + len(all[ext]) + entrySize; size > maxMessage {
			break
		}
		few[ext] = all[ext]
	}
	return few
}
