package concierge

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/auberge-vm/auberge/policy"
)

func TestFileNames(t *testing.T) {
	if got := fileName("termina"); got != "dGVybWluYQ==" { // as on ChromeOS
		t.Errorf("termina is stored as %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 60, 60).Draw(t, "name")
		if policy.CheckName(name) != nil {
			return
		}
		file := fileName(name)
		if strings.ContainsAny(file, "/\x00") || strings.HasPrefix(file, ".") || len(file)+len(qcow2Suffix) > 255 {
			t.Fatalf("%q is stored as %q", name, file)
		}
		if got, ok := vmName(file); !ok || got != name {
			t.Fatalf("%q comes back as %q, %t", name, got, ok)
		}
	})
	for what, file := range map[string]string{
		"nothing": "", "no base64": "a b", "no padding": "dGVybWluYQ", "a newline": "dGVy\nbWluYQ==", "loose bits": "dGVybWluYR==",
		"a slash in it": fileName("a/b"), "dots": fileName(".."), "NUL": fileName("a\x00"), "no UTF-8": fileName("\xff"), "standard base64": "Pz8/",
	} {
		if name, ok := vmName(file); ok {
			t.Errorf("%s: %q is taken for %q", what, file, name)
		}
	}
}

func TestLoadImage(t *testing.T) {
	good := t.TempDir()
	writeImage(t, good)
	if img, err := loadImage(good); err != nil || img.kernel != filepath.Join(good, "vmlinux") || img.rootfs != filepath.Join(good, "rootfs.squashfs") {
		t.Errorf("%+v, %v", img, err)
	}
	if img, err := loadImage(good); err != nil || img.tools != "" {
		t.Errorf("without containers: %+v, %v", img, err)
	}
	addTools(t, good)
	if img, err := loadImage(good); err != nil || img.tools != filepath.Join(good, "tools.squashfs") {
		t.Errorf("with containers: %+v, %v", img, err)
	}
	for name, test := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"not installed":    {func(d string) error { return os.RemoveAll(d) }, "make image"},
		"no manifest":      {func(d string) error { return os.Remove(filepath.Join(d, "manifest.json")) }, "make image"},
		"garbage":          {func(d string) error { return os.WriteFile(filepath.Join(d, "manifest.json"), []byte("{"), 0o644) }, "damaged"},
		"an empty one":     {func(d string) error { return os.WriteFile(filepath.Join(d, "manifest.json"), []byte("{}"), 0o644) }, "does not list vmlinux, initramfs.cpio, rootfs.squashfs"},
		"a missing kernel": {func(d string) error { return os.Remove(filepath.Join(d, "vmlinux")) }, "vmlinux"},
		"half a root":      {func(d string) error { return os.Truncate(filepath.Join(d, "rootfs.squashfs"), 3) }, "rootfs.squashfs has 3 bytes instead of 6"},
	} {
		dir := t.TempDir()
		writeImage(t, dir)
		if err := test.damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := loadImage(dir); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestCheckKernel(t *testing.T) {
	elf := func(change ...byte) []byte { // class, machine
		b := make([]byte, 64)
		copy(b, "\x7fELF\x02\x01\x01")
		b[18] = 62
		for i := 0; i+1 < len(change); i += 2 {
			b[change[i]] = change[i+1]
		}
		return b
	}
	bz := make([]byte, 0x206)
	copy(bz[0x1fe:], "\x55\xaa")
	copy(bz[0x202:], "HdrS")
	for name, test := range map[string]struct {
		kernel []byte
		ok     bool
	}{
		"vmlinux":             {elf(), true},
		"bzImage":             {bz, true},
		"32 bits":             {elf(4, 1), false},
		"another machine":     {elf(18, 183), false},
		"a cut-off ELF":       {elf()[:19], false},
		"a cut-off bzImage":   {bz[:0x205], false},
		"a boot sector":       {append(make([]byte, 0x1fe), 0x55, 0xaa), false},
		"nothing":             {nil, false},
		"text":                {[]byte("#!/bin/sh\n"), false},
		"compressed":          {append([]byte{0x1f, 0x8b}, make([]byte, 1000)...), false},
		"a header far behind": {append(make([]byte, 512), bz...), false},
	} {
		if err := checkKernel(bytes.NewReader(test.kernel)); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// qcow2 makes a header.
func qcow2(version uint32, backing uint64, backingLen uint32, incompatible uint64) []byte {
	h := make([]byte, 112)
	copy(h, "QFI\xfb")
	binary.BigEndian.PutUint32(h[4:], version)
	binary.BigEndian.PutUint64(h[8:], backing)
	binary.BigEndian.PutUint32(h[16:], backingLen)
	binary.BigEndian.PutUint64(h[72:], incompatible)
	binary.BigEndian.PutUint32(h[100:], 104)
	return h
}

func TestCheckQcow2(t *testing.T) {
	for name, test := range map[string]struct {
		image []byte
		want  string
	}{
		"version 3":              {qcow2(3, 0, 0, 0), ""},
		"version 2":              {qcow2(2, 0, 0, 0)[:72], ""},
		"dirty and corrupt bits": {qcow2(3, 0, 0, 3), ""},
		// Version 2 has no such bits; what is there means nothing.
		"version 2 with bits":    {qcow2(2, 0, 0, 4), ""},
		"backing file":           {qcow2(3, 200, 11, 0), "backing"},
		"backing file of 2":      {qcow2(2, 200, 11, 0), "backing"},
		"backing without length": {qcow2(3, 200, 0, 0), "backing"},
		"backing without place":  {qcow2(3, 0, 11, 0), "backing"},
		"external data":          {qcow2(3, 0, 0, 4), "another file"},
		"external data and more": {qcow2(3, 0, 0, 1<<63|7), "another file"},
		"version 1":              {qcow2(1, 0, 0, 0), "version 1"},
		"version 4":              {qcow2(4, 0, 0, 0), "version 4"},
		"raw":                    {make([]byte, 1<<20), "not a qcow2"},
		"empty":                  {nil, "not a qcow2"},
		"the magic alone":        {[]byte("QFI\xfb"), "not a qcow2"},
		"cut off":                {qcow2(3, 0, 0, 0)[:103], "cut off"},
	} {
		err := checkQcow2(bytes.NewReader(test.image))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// FuzzCheckQcow2: what is accepted refers to nothing.
func FuzzCheckQcow2(f *testing.F) {
	for _, v := range []uint32{1, 2, 3, 4} {
		f.Add(qcow2(v, 0, 0, 0))
		f.Add(qcow2(v, 1, 0, 4))
	}
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if checkQcow2(bytes.NewReader(image)) != nil {
			return
		}
		version := binary.BigEndian.Uint32(image[4:])
		if !bytes.HasPrefix(image, []byte("QFI\xfb")) || !bytes.Equal(image[8:20], make([]byte, 12)) || version != 2 && version != 3 ||
			version == 3 && image[79]&4 != 0 {
			t.Errorf("accepted %x", image[:min(len(image), 104)])
		}
	})
}

func TestSeal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, []byte("the kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(4, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	sealed, err := seal("kernel", f, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer sealed.Close()
	// The caller's file and its position stay the caller's; the copy is ours.
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 4 {
		t.Errorf("the caller's position is %d, %v", at, err)
	}
	if _, err := f.WriteAt([]byte("XXX"), 0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 20)
	if n, err := sealed.ReadAt(b, 0); err != io.EOF || string(b[:n]) != "the kernel" {
		t.Errorf("the copy reads %q, %v", b[:n], err)
	}
	if _, err := sealed.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the copy can be written")
	}
	if err := sealed.Truncate(0); err == nil {
		t.Error("the copy can be cut off")
	}
	if err := sealed.Truncate(100); err == nil {
		t.Error("the copy can grow")
	}
	if _, err := unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL); err == nil {
		t.Error("the seals can be changed")
	}
	// Another process of another user reads it by reopening it, and cannot
	// write it that way either.
	if again, err := os.OpenFile("/proc/self/fd/"+itoa(int(sealed.Fd())), os.O_RDWR, 0); err == nil {
		if _, err := again.Write([]byte("x")); err == nil {
			t.Error("the copy can be written when it is reopened")
		}
		again.Close()
	}
}

func TestSealRefuses(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<40); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for name, test := range map[string]struct {
		path string
		flag int
	}{"a directory": {dir, os.O_RDONLY}, "a device": {"/dev/zero", os.O_RDONLY}, "a terabyte": {big, os.O_RDONLY}, "a file for writing": {small, os.O_WRONLY}} {
		f, err := os.OpenFile(test.path, test.flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := seal("kernel", f, 1<<20); err == nil {
			m.Close()
			t.Errorf("%s was copied", name)
		}
		f.Close()
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
