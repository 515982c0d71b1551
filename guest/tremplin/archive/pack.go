package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// An Owners tells whose a file is in the container.
type Owners func(os.FileInfo) (uid, gid int)

// Count tells how much Pack will read.
func Count(dir string, look func() error) (Counts, error) {
	var c Counts
	seen := map[inode]bool{}
	err := walk(dir, func(_, _ string, info fs.FileInfo) error {
		c.Files++
		again := false
		if key, ok := linked(info); ok {
			again, seen[key] = seen[key], true
		}
		if info.Mode().IsRegular() && !again {
			c.Bytes += uint64(info.Size())
		}
		return look()
	})
	return c, err
}

// walk calls see for what belongs into an archive of a container's directory,
// which nobody may change meanwhile. It ends at what would not be taken again.
func walk(dir string, see func(path, name string, info fs.FileInfo) error) error {
	files := 0
	for _, part := range []string{metadataName, "rootfs", "templates"} {
		err := filepath.WalkDir(filepath.Join(dir, part), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				if part == "templates" && errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Mode()&fs.ModeSocket != 0 {
				return nil // of no use to anybody else, and none in tar
			}
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			files++
			if err := checkSize(files, name); err != nil {
				return err
			}
			return see(path, name, info)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Pack writes a container's directory as tar with gzip.
func Pack(w io.Writer, dir string, owners Owners, progress func(Counts) error) (Counts, error) {
	b := bufio.NewWriterSize(w, 32<<10)
	z, err := gzip.NewWriterLevel(b, gzip.BestSpeed)
	if err != nil {
		return Counts{}, err
	}
	p := packer{out: tar.NewWriter(z), owners: owners, progress: progress, links: map[inode]string{}}
	if err := walk(dir, p.add); err != nil {
		return p.counts, err
	}
	for _, end := range []func() error{p.out.Close, z.Close, b.Flush} {
		if err := end(); err != nil {
			return p.counts, err
		}
	}
	return p.counts, nil
}

type inode struct{ dev, ino uint64 }

// linked returns what identifies a file of several names.
func linked(info fs.FileInfo) (inode, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 || !info.Mode().IsRegular() {
		return inode{}, false
	}
	return inode{uint64(st.Dev), st.Ino}, true
}

type packer struct {
	out      *tar.Writer
	owners   Owners
	progress func(Counts) error
	links    map[inode]string // files of several names
	counts   Counts
}

func (p *packer) add(path, name string, info fs.FileInfo) error {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid = p.owners(info)
	if key, ok := linked(info); ok {
		if first := p.links[key]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			p.links[key] = name
		}
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir {
		if h.PAXRecords, err = readXattrs(path); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := p.out.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p.counts.Files++
	if h.Typeflag != tar.TypeReg {
		return p.progress(p.counts)
	}
	return p.content(path, h.Size)
}

func (p *packer) content(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for size > 0 {
		n, err := io.CopyN(p.out, f, min(size, 1<<20))
		size -= n
		p.counts.Bytes += uint64(n)
		if err != nil {
			return err
		}
		if err := p.progress(p.counts); err != nil {
			return err
		}
	}
	return p.progress(p.counts)
}

// readXattrs returns the extended attributes that go with a file.
func readXattrs(path string) (map[string]string, error) {
	names := make([]byte, maxXattr)
	n, err := unix.Llistxattr(path, names)
	if err == unix.ENOTSUP || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if !keepXattr(name) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Lgetxattr(path, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		value = value[:n]
		if name == "security.capability" {
			value = plainCapability(value)
		}
		if records == nil {
			records = map[string]string{}
		}
		records[xattrPrefix+name] = string(bytes.Clone(value))
	}
	return records, nil
}

// Revisions of vfs_cap_data: the third adds whose root is meant, which is not
// the same one elsewhere.
const (
	capMask      = 0xff000000
	capRevision2 = 0x02000000
	capRevision3 = 0x03000000
	capSize2     = 20
	capSize3     = 24
)

// plainCapability makes a file's capabilities those of any root.
func plainCapability(v []byte) []byte {
	if len(v) != capSize3 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	if magic&capMask != capRevision3 {
		return v
	}
	out := bytes.Clone(v[:capSize2])
	binary.LittleEndian.PutUint32(out, magic&^capMask|capRevision2)
	return out
}
