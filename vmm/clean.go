package vmm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// CleanCommand is what auberge-vm is called with to clean up.
const CleanCommand = "clean"

// Clean removes what a VM has left in its directory and what this process may
// not remove itself: the VMs' user can make directories there that nobody else
// may enter. The program does it, as that user.
func (l *Launcher) Clean(ctx context.Context, dir string) error {
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, l.Program, CleanCommand)
	cmd.Dir = dir
	cmd.Stderr = &errs
	if err := l.start(cmd); err != nil {
		return fmt.Errorf("clean up %s: %w", dir, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("clean up %s: %w: %s", dir, err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// CleanDir removes all that this process may remove from a directory, after
// it has given itself the right to enter what is its own.
func CleanDir(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// From the top down: what is not readable yet has not been looked into.
	// Root keeps links from leading anywhere else.
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if path != "." && d != nil && d.IsDir() && err != nil {
			return nil // it is told by the removal
		}
		if err != nil {
			return err
		}
		if path != "." && d.IsDir() {
			root.Chmod(path, 0o700)
		}
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	var last error
	for _, e := range entries {
		if err := root.RemoveAll(e.Name()); err != nil {
			last = fmt.Errorf("remove %s: %w", filepath.Join(dir, e.Name()), err)
		}
	}
	return last
}
