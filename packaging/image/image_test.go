package image_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	image "github.com/auberge-vm/auberge/packaging/image"
	"github.com/auberge-vm/auberge/packaging/image/internal/newc"
)

// builtImage returns the image under test: the one that AUBERGE_IMAGE_DIR
// names, or else one from build.sh (out of its cache where possible), with a
// stand-in for every agent, because this is about the image and not about them.
var builtImage = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("AUBERGE_IMAGE_DIR"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "image-test-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	agent, err := buildAgent(dir)
	if err != nil {
		return "", err
	}
	return runBuild("build.sh", nil, "--maitred", agent, "--vshd", agent, "--tremplin", agent, "--garcon", agent)
})

// buildAgent builds some static program.
func buildAgent(dir string) (string, error) {
	agent := filepath.Join(dir, "agent")
	cmd := exec.Command("go", "build", "-o", agent, "./mkinitramfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return agent, cmd.Run()
}

// runBuild runs a build.sh and returns the last line that it prints.
func runBuild(script string, env []string, args ...string) (string, error) {
	cmd := exec.Command(script, args...)
	if !filepath.IsAbs(script) {
		cmd = exec.Command("./"+script, args...)
	}
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], err
}

func imageDir(t *testing.T) string {
	t.Helper()
	dir, err := builtImage()
	if err != nil {
		t.Fatalf("no image: %v", err)
	}
	return dir
}

func TestImageIsWhatItsManifestSays(t *testing.T) {
	dir := imageDir(t)
	m, err := image.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(dir); err != nil {
		t.Error(err)
	}
	if m.Suite != "trixie" || m.Architecture != "amd64" || m.KernelRelease == "" || m.Key == "" || m.BaseKey == "" {
		t.Errorf("manifest says %q, %q, kernel %q, keys %q and %q",
			m.Suite, m.Architecture, m.KernelRelease, m.Key, m.BaseKey)
	}
	if m.Created.IsZero() || m.Features == nil {
		t.Errorf("manifest has date %v and features %v", m.Created, m.Features)
	}
	versions := map[string]string{}
	for _, p := range m.Packages {
		versions[p.Name] = p.Version
	}
	for _, name := range []string{"bash", "btrfs-progs", "incus-base", "iproute2", "kmod", "linux-image-" + m.KernelRelease} {
		if versions[name] == "" {
			t.Errorf("manifest has no version of %s", name)
		}
	}
	if !slices.Contains(m.Features, image.FeatureTremplin) || m.ContainerKey == "" {
		t.Errorf("manifest has features %q and container key %q: no containers", m.Features, m.ContainerKey)
	}
	if !slices.ContainsFunc(m.ContainerPackages, func(p image.Package) bool { return p.Name == "packagekit" && p.Version != "" }) {
		t.Error("manifest has no version of packagekit in containers")
	}

	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{image.InitramfsFile, image.ManifestFile, image.RootFile, image.ToolsFile, image.KernelFile}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("image holds %q, want %q", names, want)
	}
}

func TestKernelStartsWithoutFirmware(t *testing.T) {
	f, err := elf.Open(filepath.Join(imageDir(t), image.KernelFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 {
		t.Errorf("kernel is %v for %v", f.Type, f.Machine)
	}
	if !hasPVHEntry(t, f) {
		t.Error("kernel has no PVH entry (note 18 of Xen): QEMU would not start it")
	}
}

// hasPVHEntry looks for XEN_ELFNOTE_PHYS32_ENTRY.
func hasPVHEntry(t *testing.T, f *elf.File) bool {
	t.Helper()
	const physEntry = 18
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			t.Fatal(err)
		}
		for len(notes) >= 12 {
			nameSize := int(f.ByteOrder.Uint32(notes[0:]))
			size := int(f.ByteOrder.Uint32(notes[4:]))
			kind := f.ByteOrder.Uint32(notes[8:])
			end := 12 + (nameSize+3)&^3 + (size+3)&^3
			if nameSize < 1 || end > len(notes) {
				return false
			}
			if kind == physEntry && string(notes[12:12+nameSize-1]) == "Xen" {
				return true
			}
			notes = notes[end:]
		}
	}
	return false
}

func TestInitramfsLoadsItsModulesInOrder(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(imageDir(t), image.InitramfsFile))
	if err != nil {
		t.Fatal(err)
	}
	list, err := newc.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]newc.Member{}
	var modules []string
	for _, m := range list {
		members[m.Name] = m
		if strings.HasSuffix(m.Name, ".ko") {
			modules = append(modules, path.Base(m.Name))
		}
	}
	for _, name := range []string{"init", "vshd"} {
		checkProgram(t, members[name])
	}
	if c := members["dev/console"]; c.Mode != 0o20600 || c.Major != 5 || c.Minor != 1 {
		t.Errorf("dev/console is %o %d:%d", c.Mode, c.Major, c.Minor)
	}

	order := strings.Fields(string(members[image.OrderFile].Data))
	slices.Sort(modules)
	if sorted := slices.Sorted(slices.Values(order)); !slices.Equal(sorted, modules) {
		t.Errorf("order names %q, the archive has %q", sorted, modules)
	}
	loaded := map[string]bool{}
	for _, file := range order {
		name, depends := readModule(t, members[image.ModulesDir+"/"+file])
		for _, d := range depends {
			// What is not in the archive must be built in; the boot tests see that.
			if !loaded[d] && slices.ContainsFunc(order, func(f string) bool { return moduleName(f) == d }) {
				t.Errorf("%s comes before %s, which it needs", file, d)
			}
		}
		loaded[name] = true
	}
	for _, name := range []string{"virtio_blk", "squashfs", "overlay", "vsock", "vmw_vsock_virtio_transport", "virtio_net"} {
		if !loaded[name] {
			t.Errorf("%s is not loaded", name)
		}
	}
}

func checkProgram(t *testing.T, m newc.Member) {
	t.Helper()
	if m.Mode != 0o100755 {
		t.Errorf("%s has mode %o", m.Name, m.Mode)
		return
	}
	f, err := elf.NewFile(bytes.NewReader(m.Data))
	if err != nil {
		t.Errorf("%s: %v", m.Name, err)
		return
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s is not static", m.Name)
		}
	}
}

// moduleName is the kernel's name of a module file, NNN-name.ko.
func moduleName(file string) string {
	_, name, _ := strings.Cut(strings.TrimSuffix(file, ".ko"), "-")
	return strings.ReplaceAll(name, "-", "_")
}

// readModule returns the name of a module and what it depends on, as its own
// .modinfo says.
func readModule(t *testing.T, m newc.Member) (name string, depends []string) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(m.Data))
	if err != nil || f.Type != elf.ET_REL {
		t.Fatalf("%s is not an uncompressed module: %v", m.Name, err)
	}
	if bytes.HasSuffix(m.Data, []byte("~Module signature appended~\n")) {
		t.Errorf("%s still has its signature, which costs boot time", m.Name)
	}
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		switch key, value, _ := strings.Cut(field, "="); {
		case key == "name":
			name = value
		case key == "depends" && value != "":
			depends = strings.Split(value, ",")
		}
	}
	return name, depends
}

func TestRootHasWhatTheAgentNeedsAndNothingOfTheBuilder(t *testing.T) {
	dir := imageDir(t)
	m, err := image.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, image.RootFile)
	checkSquashfs(t, root)

	listing := describe(t, root)
	for name, want := range map[string]string{
		"proc": "dir 0755 0 0", "sys": "dir 0755 0 0", "dev": "dir 0755 0 0", "run": "dir 0755 0 0",
		"tmp":          "dir 01777 0 0",
		"mnt/stateful": "dir 0755 0 0", "mnt/shared": "dir 0755 0 0", "mnt/external": "dir 0755 0 0",
		"home/chronos":               "dir 0700 1000 1000",
		"etc/resolv.conf":            "slink 0777 0 0 /run/resolv.conf",
		"usr/bin/bash":               "file 0755 0 0",
		"usr/bin/ip":                 "file 0755 0 0",
		"usr/sbin/mkfs.btrfs":        "file 0755 0 0",
		"usr/libexec/incus/incusd":   "file 0755 0 0",
		"usr/bin/lxcfs":              "file 0755 0 0",
		"usr/sbin/dnsmasq":           "file 0755 0 0",
		"opt/google/cros-containers": "dir 0755 0 0",
		"usr/sbin/mkfs.ext4":         "slink 0777 0 0 mke2fs",
		"usr/sbin/modprobe":          "slink 0777 0 0 ../bin/kmod",
		"usr/lib/modules/" + m.KernelRelease + "/modules.dep.bin":                "file 0644 0 0",
		"usr/lib/modules/" + m.KernelRelease + "/kernel/fs/btrfs/btrfs.ko":       "file 0644 0 0",
		"usr/lib/modules/" + m.KernelRelease + "/kernel/fs/9p/9p.ko":             "file 0644 0 0",
		"usr/lib/modules/" + m.KernelRelease + "/kernel/drivers/net/tun.ko":      "file 0644 0 0",
		"usr/lib/modules/" + m.KernelRelease + "/kernel/net/bridge/bridge.ko":    "file 0644 0 0",
		"usr/lib/modules/" + m.KernelRelease + "/kernel/fs/overlayfs/overlay.ko": "file 0644 0 0",
	} {
		got := listing[name]
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}

	forbidden := regexp.MustCompile(`^(usr/lib/systemd/systemd$|usr/sbin/init$|boot/|tmp/|etc/ssh/|` +
		`usr/share/(man|doc|locale)/|etc/apt/sources.list.d/|etc/apt/apt.conf.d/99|` +
		`var/lib/apt/lists/.*(Packages|Release)|var/cache/apt/.*\.(deb|bin)$)`)
	for name := range listing {
		if forbidden.MatchString(name) {
			t.Errorf("%s should not be in the root", name)
		}
	}
	if !strings.Contains(rdsquashfs(t, "--cat", "etc/passwd", root), "\nchronos:x:1000:1000::/home/chronos:/bin/bash\n") {
		t.Error("no user chronos")
	}
	if !strings.Contains(rdsquashfs(t, "--cat", "etc/shadow", root), "\nchronos:!:") {
		t.Error("chronos is not locked")
	}
	for _, file := range []string{"etc/subuid", "etc/subgid"} {
		if got := rdsquashfs(t, "--cat", file, root); got != "root:1000000:1000000000\nroot:1000:1\n" {
			t.Errorf("%s holds %q", file, got)
		}
	}
	for _, file := range []string{"etc/machine-id", "etc/apt/sources.list"} {
		if got := rdsquashfs(t, "--cat", file, root); got != "" {
			t.Errorf("%s holds %q, want nothing", file, got)
		}
	}
}

// describe lists what is in a squashfs: path and the rest of its line.
func describe(t *testing.T, file string) map[string]string {
	t.Helper()
	listing := map[string]string{}
	for line := range strings.Lines(rdsquashfs(t, "--describe", file)) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, rest, _ := strings.Cut(rest, " ")
		listing[name] = kind + " " + rest
	}
	return listing
}

func rdsquashfs(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("rdsquashfs", args...).Output()
	if err != nil {
		t.Fatalf("rdsquashfs %q: %v", args, err)
	}
	return string(out)
}

// checkSquashfs reads the superblock: what the kernel checks on mounting.
func checkSquashfs(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var super struct {
		Magic, Inodes, Time, BlockSize, Fragments uint32
		Compression, BlockLog, Flags, IDs         uint16
		Major, Minor                              uint16
	}
	if err := binary.Read(f, binary.LittleEndian, &super); err != nil {
		t.Fatal(err)
	}
	const zstd = 6
	if string(binary.LittleEndian.AppendUint32(nil, super.Magic)) != "hsqs" || super.Major != 4 || super.Compression != zstd {
		t.Errorf("root is not a squashfs 4 with zstd: %+v", super)
	}
	if info, err := f.Stat(); err != nil || info.Size()%512 != 0 {
		t.Errorf("root is not a whole number of sectors: %v", err)
	}
}
