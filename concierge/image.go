package concierge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Sizes of what a caller may hand in to boot from, in bytes.
const (
	maxKernel = 512 << 20
	maxInitrd = 1 << 30
)

// An image is an installed guest image.
type image struct {
	key                       string
	kernel, initramfs, rootfs string
	tools                     string // what containers need; empty in an image without them
	tremplin                  bool   // their manager is among that
}

// loadImage reads the manifest in the image directory. It is read for every
// start: a new image is used by the next VM.
func loadImage(dir string) (image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return image{}, fmt.Errorf("the guest image is not installed: %w (build one with make image, or see --image-dir)", err)
	}
	var m struct {
		Key      string   `json:"key"`
		Features []string `json:"features"`
		Files    []struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		} `json:"files"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return image{}, fmt.Errorf("the guest image in %s is damaged: manifest.json: %w", dir, err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	img := image{key: m.Key, kernel: in(kernelFile), initramfs: in(initramfsFile), rootfs: in(rootfsFile),
		tremplin: slices.Contains(m.Features, featureTremplin)}
	missing := []string{kernelFile, initramfsFile, rootfsFile}
	for _, f := range m.Files {
		if f.Name == toolsFile {
			img.tools = in(toolsFile)
		}
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == f.Name })
		fi, err := os.Stat(filepath.Join(dir, filepath.Base(f.Name)))
		if err != nil {
			return image{}, fmt.Errorf("the guest image in %s is damaged: %w", dir, err)
		}
		if fi.Size() != f.Size {
			return image{}, fmt.Errorf("the guest image in %s is damaged: %s has %d bytes instead of %d", dir, f.Name, fi.Size(), f.Size)
		}
	}
	if len(missing) > 0 {
		return image{}, fmt.Errorf("the guest image in %s is damaged: manifest.json does not list %s", dir, strings.Join(missing, ", "))
	}
	return img, nil
}

// Files of an image.
const (
	kernelFile    = "vmlinux"
	initramfsFile = "initramfs.cpio"
	rootfsFile    = "rootfs.squashfs"
	toolsFile     = "tools.squashfs"
)

// featureTremplin is what a manifest says of an image that has containers.
const featureTremplin = "tremplin"

// seal copies a file that a caller chose into sealed memory: the hypervisor,
// another user, can open that, and nobody can change it once it was checked.
func seal(name string, f *os.File, limit int64) (*os.File, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, fi.Size(), limit)
	}
	fd, err := unix.MemfdCreate("auberge-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m := os.NewFile(uintptr(fd), name)
	if _, err := io.Copy(m, io.NewSectionReader(f, 0, limit)); err != nil {
		m.Close()
		return nil, fmt.Errorf("copy the %s: %w", name, err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		m.Close()
		return nil, fmt.Errorf("seal the %s: %w", name, err)
	}
	return m, nil
}

var errNoKernel = errors.New("it is neither an x86-64 ELF vmlinux nor a bzImage")

// checkKernel looks for the marks of a kernel that QEMU can boot.
func checkKernel(f io.ReaderAt) error {
	var head [0x206]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	const machineX86_64 = 62
	switch {
	case n >= 20 && string(head[:4]) == "\x7fELF" && head[4] == 2 && head[18] == machineX86_64 && head[19] == 0:
		return nil
	case n == len(head) && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa && string(head[0x202:0x206]) == "HdrS":
		return nil
	}
	return errNoKernel
}
