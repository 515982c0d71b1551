package mime

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

// most is how many types the host takes. By far fewer are in Debian.
const most = 8192

// Cache is the cache of a directory of data, /usr/share for instance.
func Cache(data string) string { return filepath.Join(data, "mime", "mime.cache") }

// Load joins the caches of directories of data; the first that knows an
// extension counts. One that cannot be read is left out, and the error says
// so; a missing one is no error. Of more than the host takes the last by name are left out.
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

// fitting leaves out what is too much for the host, the last by name.
func fitting(all map[string]string) map[string]string {
	if len(all) <= most {
		return all
	}
	few := map[string]string{}
	for _, ext := range slices.Sorted(maps.Keys(all))[:most] {
		few[ext] = all[ext]
	}
	return few
}
