package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Format is the version of the image's layout and manifest. A reader refuses
// any other.
const Format = 1

// The files of an image directory.
const (
	ManifestFile  = "manifest.json"       // the Manifest
	KernelFile    = "vmlinux"             // the kernel, an uncompressed ELF file with a PVH entry
	InitramfsFile = "initramfs.cpio"      // init, vshd and the first modules; newc, uncompressed
	RootFile      = "rootfs.squashfs"     // the read-only root
	ToolsFile     = "tools.squashfs"      // the containers' image, and agents that are not in the initramfs
	ModulesDir    = "modules"             // in the initramfs: the modules to load
	OrderFile     = ModulesDir + "/order" // in the initramfs: their file names, in load order, one a line
)

// FeatureTremplin says that the image can run containers: it has ToolsFile.
const FeatureTremplin = "tremplin"

// Manifest is what manifest.json holds.
type Manifest struct {
	Format        int       `json:"format"`
	Key           string    `json:"key"`                     // of the whole image: the recipe and our agents
	BaseKey       string    `json:"base_key"`                // of the recipe alone
	ContainerKey  string    `json:"container_key,omitempty"` // of the containers' root
	Suite         string    `json:"suite"`                   // Debian's code name
	Architecture  string    `json:"architecture"`
	KernelRelease string    `json:"kernel_release"`
	Created       time.Time `json:"created"` // date of the archive, not of the build
	Features      []string  `json:"features"`
	Files         []File    `json:"files"`
	Packages      []Package `json:"packages"`
	// ContainerPackages are those of the containers' root.
	ContainerPackages []Package `json:"container_packages,omitempty"`
}

// File is one file of the image directory.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hexadecimal
}

// Package is a Debian package whose files are in the image.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
}

// Read reads the manifest of the image in dir.
func Read(dir string) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("guest image %s: manifest: %w", dir, err)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("guest image %s has format %d, this program knows %d", dir, m.Format, Format)
	}
	return &m, nil
}

// AddFiles measures the named files of dir and adds them to the manifest.
func (m *Manifest) AddFiles(dir string, names ...string) error {
	for _, name := range names {
		f, err := measure(dir, name)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, f)
	}
	return nil
}

// Check compares every file of the image in dir with the manifest, by size and
// by content, and reports all that differ. It reads the whole image.
func (m *Manifest) Check(dir string) error {
	known := map[string]bool{}
	var errs []error
	for _, want := range m.Files {
		known[want.Name] = true
		got, err := measure(dir, want.Name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case got != want:
			errs = append(errs, fmt.Errorf("%s is not the file of the manifest", want.Name))
		}
	}
	for _, name := range []string{KernelFile, InitramfsFile, RootFile} {
		if !known[name] {
			errs = append(errs, fmt.Errorf("the manifest does not name %s", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guest image %s: %w", dir, err)
	}
	return nil
}

// measure describes one file. A name that leaves the directory is refused:
// manifests come from disk.
func measure(dir, name string) (File, error) {
	if !filepath.IsLocal(name) {
		return File{}, fmt.Errorf("%q is not a file name", name)
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return File{}, err
	}
	return File{Name: name, Size: size, SHA256: hex.EncodeToString(hash.Sum(nil))}, nil
}
