package coretest

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// LoseNewestRoot destroys the newest tree of roots of an unmounted btrfs, on a
// device or in an image, as a disk does that lied about a write: the superblock
// points to it, and only the older ones that it remembers are left. Mount
// the file system without discard before, or those are gone too.
func LoseNewestRoot(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// struct btrfs_super_block: fsid at 32, magic at 64, root at 80.
	super := make([]byte, 4096)
	if _, err := f.ReadAt(super, 64<<10); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(super[64:72], []byte("_BHRfS_M")) {
		t.Fatalf("%s holds no btrfs", path)
	}
	fsid, root := super[32:48], binary.LittleEndian.Uint64(super[80:])
	// struct btrfs_header: fsid at 32, its own logical address at 48. Where
	// that lies is not asked: copies are found by what they say they are.
	const sector = 4096
	lost := 0
	block := make([]byte, 1<<20)
	for at := int64(1 << 20); ; at += int64(len(block)) {
		n, err := f.ReadAt(block, at)
		for i := 0; i+sector <= n; i += sector {
			b := block[i : i+sector]
			if !bytes.Equal(b[32:48], fsid) || binary.LittleEndian.Uint64(b[48:]) != root {
				continue
			}
			if _, err := f.WriteAt(make([]byte, sector), at+int64(i)); err != nil {
				t.Fatal(err)
			}
			lost++
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 {
		t.Fatalf("%s has no block at %d", path, root)
	}
}
