package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Inspect reads an archive of an image that Incus is to unpack by itself, the
// whole one or that of its metadata, and refuses what leads Incus out of the
// container's directory: beside rootfs, only directories and files.
func Inspect(r io.Reader) error {
	in, closeIn, err := uncompressed(r)
	if err != nil {
		return err
	}
	defer closeIn()
	entries := tar.NewReader(in)
	for range maxEntries {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive cannot be read: %w", err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(name, "rootfs/"):
		case h.Typeflag == tar.TypeDir, h.Typeflag == tar.TypeReg && name != "rootfs":
		default:
			return unsafef("%.200q is neither a file nor a directory, and not in rootfs", name)
		}
	}
	return unsafef("it has more than %d entries", maxEntries)
}

// WithoutTemplates returns a metadata.yaml with nothing but what Metadata has.
func WithoutTemplates(data []byte) ([]byte, error) {
	m, err := ParseMetadata(data)
	if err != nil {
		return nil, err
	}
	return m.encode()
}
