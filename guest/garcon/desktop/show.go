package desktop

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// desktopName is the desktop that the host counts as, in OnlyShowIn and
// NotShowIn.
const desktopName = "GNOME"

// Shown tells whether the host's desktop gets the application: it must be one
// that can be run, be meant for such a desktop, and be of use to a person by
// itself or for files. path is the PATH in which TryExec is looked for.
func (e *Entry) Shown(path string) bool {
	switch {
	case e.Type != "Application", e.Hidden, strings.TrimSpace(e.Exec) == "":
		return false
	case e.NoDisplay && len(e.MimeTypes) == 0:
		return false
	case slices.Contains(e.Categories, "Settings"):
		return false
	case e.onlyShowIn && !slices.Contains(e.OnlyShowIn, desktopName):
		return false
	case slices.Contains(e.NotShowIn, desktopName):
		return false
	}
	return e.TryExec == "" || e.canTry(path)
}

func (e *Entry) canTry(path string) bool {
	_, err := LookPath(e.TryExec, path)
	return err == nil
}

// LookPath finds a program as a shell with this PATH does, but never in the
// directory where it happens to run.
func LookPath(name, path string) (string, error) {
	missing := &exec.Error{Name: name, Err: exec.ErrNotFound}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			return "", missing
		}
		return name, executable(name)
	}
	if name == "" {
		return "", missing
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, name)
		if executable(file) == nil {
			return file, nil
		}
	}
	return "", missing
}

func executable(file string) error {
	switch fi, err := os.Stat(file); {
	case err != nil:
		return err
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return &os.PathError{Op: "exec", Path: file, Err: os.ErrPermission}
	}
	return nil
}
