package concierge

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/auberge-vm/auberge/vmm/crash"
)

// storeFile writes a small file of this service's own. Whoever reads it finds
// the old text or the new, also after a crash; what a crash leaves beside it
// is swept away by the next service.
func storeFile(path string, text []byte, written, stored crash.Point) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(text); err != nil {
		return err
	}
	crash.At(written)
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	crash.At(stored)
	return nil
}

// sweep removes what storeFile left unfinished beneath a directory: the names
// of temporary files begin with a dot, which those of no other file do.
func sweep(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.HasPrefix(d.Name(), ".") {
			return os.Remove(path)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	return nil
}
