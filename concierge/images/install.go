package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// spare is what stays free on the disk, in bytes.
const spare = 64 << 20

// install copies the packaged image into the store. It is there whole or not
// at all.
func (s *Store) install(ctx context.Context, m *image.Manifest, manifest []byte) (err error) {
	if err := s.room(m); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, newPrefix)
	if err != nil {
		return fmt.Errorf("copy the guest image: %w", noSpace(err))
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	s.step("made")
	for _, f := range m.Files {
		if err := s.copyFile(ctx, dir, f); err != nil {
			return err
		}
		s.step("copied")
	}
	if err := writeFile(filepath.Join(dir, image.ManifestFile), manifest); err != nil {
		return fmt.Errorf("copy the guest image: %w", noSpace(err))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("copy the guest image: %w", err)
	}
	s.step("whole")
	// What has its name is damaged, or it would not be copied.
	old := filepath.Join(s.dir, oldPrefix+m.Key)
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("replace the damaged guest image: %w", err)
	}
	if err := os.Rename(s.path(m.Key), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the damaged guest image: %w", err)
	}
	s.step("moved")
	if err := os.Rename(dir, s.path(m.Key)); err != nil {
		return fmt.Errorf("take the guest image into the store: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("take the guest image into the store: %w", err)
	}
	s.step("installed")
	if err := os.RemoveAll(old); err != nil {
		s.log.Warn("remove a damaged guest image", "err", err)
	}
	return nil
}

// room refuses an image for which there is no space, before any of it is
// written.
func (s *Store) room(m *image.Manifest) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("look at the free space of the store of guest images: %w", err)
	}
	need, free := int64(spare), int64(st.Bavail)*st.Bsize
	for _, f := range m.Files {
		if need += f.Size; need > free || need < 0 {
			return fmt.Errorf("%w: %s has %d MiB, and more than that is needed; make room there, the image in use stays until then", ErrNoSpace, s.dir, free>>20)
		}
	}
	return nil
}

// copyFile copies one file of the packaged image, or shares its blocks where
// the file system can, and compares the copy with the manifest.
func (s *Store) copyFile(ctx context.Context, dir string, f image.File) error {
	from, err := os.OpenFile(filepath.Join(s.packaged, f.Name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer from.Close()
	fi, err := from.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !fi.Mode().IsRegular() || fi.Size() != f.Size {
		return fmt.Errorf("%w: %s is no file of %d bytes; install the package anew", ErrDamaged, from.Name(), f.Size)
	}
	to, err := os.OpenFile(filepath.Join(dir, f.Name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from.Name(), noSpace(err))
	}
	defer to.Close()
	// A hypervisor gets it as a descriptor and opens that anew, as another
	// user. Nobody else finds the way through the store's directory.
	if err := to.Chmod(0o644); err != nil {
		return fmt.Errorf("copy %s: %w", from.Name(), err)
	}
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) != nil {
		if _, err := io.Copy(to, &patient{ctx, io.LimitReader(from, f.Size)}); err != nil {
			return fmt.Errorf("copy %s: %w", from.Name(), noSpace(err))
		}
	}
	hash := sha256.New()
	n, err := io.Copy(hash, &patient{ctx, io.NewSectionReader(to, 0, f.Size+1)})
	if err != nil {
		return fmt.Errorf("read the copy of %s: %w", from.Name(), err)
	}
	if n != f.Size || hex.EncodeToString(hash.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%w: the contents of %s are not those of its manifest; install the package anew", ErrDamaged, from.Name())
	}
	if err := to.Sync(); err != nil {
		return fmt.Errorf("copy %s: %w", from.Name(), noSpace(err))
	}
	return nil
}

// patient reads until somebody has lost patience.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	return p.r.Read(b)
}

func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// noSpace gives a disk that is full its own error.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w; make room, the image in use stays until then: %w", ErrNoSpace, err)
	}
	return err
}
