package archive

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
)

const bufferSize = 64 << 10

// ErrUnsafe says that an archive has what no container needs and an attacker
// may.
var ErrUnsafe = errors.New("the archive is refused")

func unsafef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsafe, fmt.Sprintf(format, args...))
}

// A Counts tells how far an archive has been read.
type Counts struct {
	Files uint32
	Bytes uint64 // of files
}

// A Check looks at an archive while it is read; its error ends that.
type Check struct {
	Metadata func(Metadata) error
	Progress func(Counts) error
	// Mark is a comment in the metadata, which makes an archive unlike any other.
	Mark string
}

// Clean reads a container's archive and writes it to w with nothing but
// metadata.yaml and what is beneath rootfs. It is not compressed: who reads it
// is on the same machine, and would only have to undo that.
func Clean(w io.Writer, r io.Reader, check Check) (Metadata, Counts, error) {
	in, closeIn, err := uncompressed(r)
	if err != nil {
		return Metadata{}, Counts{}, err
	}
	defer closeIn()
	b := bufio.NewWriterSize(w, bufferSize)
	c := cleaner{out: tar.NewWriter(b), buffer: make([]byte, bufferSize), seen: map[uint64]byte{}, seed: maphash.MakeSeed(), check: check}
	if err := c.all(tar.NewReader(in)); err != nil {
		return c.metadata, c.counts, err
	}
	// What follows the archive must be there and is nothing: a compressor's
	// checksum, which tells whether all of it arrived.
	if _, err := io.Copy(io.Discard, io.LimitReader(in, 1<<20)); err != nil {
		return c.metadata, c.counts, err
	}
	for _, end := range []func() error{c.out.Close, b.Flush} {
		if err := end(); err != nil {
			return c.metadata, c.counts, err
		}
	}
	return c.metadata, c.counts, nil
}

// What a path of the archive is so far.
const (
	isDir byte = iota + 1
	isFile
	isOther
)

type cleaner struct {
	out    *tar.Writer
	buffer []byte
	check  Check
	seed   maphash.Seed
	seen   map[uint64]byte // by the hash of a path, which may be long

	hasMetadata bool
	metadata    Metadata
	counts      Counts
}

func (c *cleaner) hash(name string) uint64 { return maphash.String(c.seed, name) }

func (c *cleaner) all(in *tar.Reader) error {
	for range maxEntries {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return c.complete()
		}
		if err != nil {
			return fmt.Errorf("the archive cannot be read: %w", err)
		}
		if err := c.entry(h, in); err != nil {
			return err
		}
	}
	return unsafef("it has more than %d entries", maxEntries)
}

func (c *cleaner) complete() error {
	if !c.hasMetadata {
		return fmt.Errorf("the archive has no %s; is it a container's?", metadataName)
	}
	if c.seen[c.hash("rootfs")] != isDir {
		return errors.New("the archive has no rootfs; is it a container's?")
	}
	return nil
}

func (c *cleaner) entry(h *tar.Header, data io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return nil
	}
	top, _, below := strings.Cut(name, "/")
	switch {
	case name == metadataName:
		return c.readMetadata(h, data)
	case top == "templates" && (below || h.Typeflag == tar.TypeDir):
		return nil // see Metadata
	case top != "rootfs":
		return unsafef("%.200q is neither %s nor in rootfs", name, metadataName)
	case !below && h.Typeflag != tar.TypeDir:
		return unsafef("rootfs is no directory")
	}
	return c.file(name, h, data)
}

func (c *cleaner) readMetadata(h *tar.Header, data io.Reader) error {
	if c.hasMetadata {
		return unsafef("it has %s twice", metadataName)
	}
	m, err := readMetadata(h, data)
	if err != nil {
		return err
	}
	c.hasMetadata, c.metadata = true, m
	if c.check.Metadata != nil {
		if err := c.check.Metadata(m); err != nil {
			return err
		}
	}
	return m.write(c.out, c.check.Mark)
}

// file writes an entry beneath rootfs.
func (c *cleaner) file(name string, h *tar.Header, data io.Reader) error {
	out := tar.Header{
		Name: name, Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
		Format: tar.FormatPAX, PAXRecords: xattrs(h.PAXRecords),
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return unsafef("%.200q belongs to %d:%d", name, h.Uid, h.Gid)
	}
	kind := isOther
	switch h.Typeflag {
	case tar.TypeReg:
		kind, out.Size = isFile, h.Size
	case tar.TypeDir:
		kind = isDir
		out.Name += "/"
	case tar.TypeSymlink:
		if len(h.Linkname) > maxTarget || strings.ContainsRune(h.Linkname, 0) {
			return unsafef("the link %.200q leads to what is no path", name)
		}
		out.Linkname = h.Linkname
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return err
		}
		if c.seen[c.hash(target)] != isFile {
			return unsafef("%.200q is another name of %.200q, which is no file of the container", name, target)
		}
		kind, out.Linkname = isFile, target
	case tar.TypeFifo:
	case tar.TypeChar:
		if h.Devmajor != 0 || h.Devminor != 0 {
			return nil // the container's devices are made at its start
		}
	case tar.TypeBlock:
		return nil
	default:
		return unsafef("%.200q is of the type %q", name, h.Typeflag)
	}
	if err := c.place(name, kind); err != nil {
		return err
	}
	if err := c.out.WriteHeader(&out); err != nil {
		return fmt.Errorf("%.200q cannot be in an archive: %w", name, err)
	}
	return c.copy(out.Size, data)
}

// place notes what a path is, and refuses one that leads through anything but
// directories, or that is two things.
func (c *cleaner) place(name string, kind byte) error {
	var prefix maphash.Hash
	prefix.SetSeed(c.seed)
	from := 0
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		prefix.WriteString(name[from:i])
		from = i
		switch h := prefix.Sum64(); c.seen[h] {
		case 0:
			c.seen[h] = isDir
		case isDir:
		default:
			return unsafef("%.200q is beneath what is no directory", name)
		}
	}
	h := c.hash(name)
	if was := c.seen[h]; was != 0 && (was != isDir || kind != isDir) {
		return unsafef("it has %.200q twice", name)
	}
	c.seen[h] = kind
	if len(c.seen) > maxEntries {
		return unsafef("it has more than %d paths", maxEntries)
	}
	return nil
}

func (c *cleaner) copy(size int64, data io.Reader) error {
	c.counts.Files++
	for size > 0 {
		// All in one buffer: most files are small, and there are many.
		n, err := io.ReadFull(data, c.buffer[:min(size, int64(len(c.buffer)))])
		if err != nil {
			return fmt.Errorf("the archive breaks off: %w", err)
		}
		if _, err := c.out.Write(c.buffer[:n]); err != nil {
			return err
		}
		size -= int64(n)
		c.counts.Bytes += uint64(n)
		if err := c.tell(); err != nil {
			return err
		}
	}
	return c.tell()
}

func (c *cleaner) tell() error {
	if c.check.Progress == nil {
		return nil
	}
	return c.check.Progress(c.counts)
}
