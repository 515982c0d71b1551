package desktop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const extension = ".desktop"

// ErrNoSuchID says that no .desktop file has an id.
var ErrNoSuchID = errors.New("no application has this id")

// maxHyphens bounds the ways to read an id as a path, as on ChromeOS.
const maxHyphens = 10

// ID is the id of the file at a path relative to its directory of
// applications: without the extension, and a hyphen for each slash. It is ""
// for what is no .desktop file, or has a name that no message can carry.
func ID(relative string) string {
	name, ok := strings.CutSuffix(filepath.ToSlash(relative), extension)
	if !ok || name == "" || strings.HasSuffix(name, "/") || !validID(name) {
		return ""
	}
	return strings.ReplaceAll(name, "/", "-")
}

// Find returns the entry with an id: the first valid one in the directories,
// in their order.
func Find(dirs []string, id string) (*Entry, error) {
	id = strings.TrimSuffix(id, extension)
	if !validID(id) || strings.ContainsAny(id, "/\x00") || len(id) > 1024 {
		return nil, fmt.Errorf("%q: %w", id, ErrNoSuchID)
	}
	if n := strings.Count(id, "-"); n > maxHyphens {
		return findWhole(dirs, id)
	}
	var failed error
	for _, dir := range dirs {
		e, err := find(dir, id)
		if e != nil {
			return e, nil
		}
		failed = firstError(failed, err)
	}
	return nil, notFound(id, failed)
}

// findWhole looks for an id with more hyphens than are tried as slashes.
func findWhole(dirs []string, id string) (*Entry, error) {
	var failed error
	for _, dir := range dirs {
		e, err := Load(filepath.Join(dir, id+extension))
		if err == nil {
			return e, nil
		}
		failed = firstError(failed, err)
	}
	return nil, notFound(id, failed)
}

// find tries the id as a name first, and then each of its hyphens as the end
// of a directory's name, if there is such a directory.
func find(dir, id string) (*Entry, error) {
	e, failed := Load(filepath.Join(dir, id+extension))
	if failed == nil {
		return e, nil
	}
	failed = firstError(nil, failed)
	for i := 0; i < len(id); i++ {
		if id[i] != '-' || i == 0 || i+1 == len(id) {
			continue
		}
		name := id[:i]
		if name == "." || name == ".." {
			continue
		}
		sub := filepath.Join(dir, name)
		if fi, err := os.Stat(sub); err != nil || !fi.IsDir() {
			continue
		}
		e, err := find(sub, id[i+1:])
		if e != nil {
			return e, nil
		}
		failed = firstError(failed, err)
	}
	return nil, failed
}

// firstError keeps what is worth telling: not that a file is missing.
func firstError(had, err error) error {
	if had != nil || errors.Is(err, fs.ErrNotExist) {
		return had
	}
	return err
}

func notFound(id string, failed error) error {
	if failed != nil {
		return fmt.Errorf("%q: %w: %w", id, ErrNoSuchID, failed)
	}
	return fmt.Errorf("%q: %w", id, ErrNoSuchID)
}
