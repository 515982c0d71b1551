package image_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// copyRecipe copies the recipe, and the module around it, to a place of its
// own, where a test may change it.
func copyRecipe(t *testing.T) (recipe string) {
	t.Helper()
	root := t.TempDir()
	for _, part := range []string{"go.mod", "go.sum", "packaging/image", "packaging/deps"} {
		from := filepath.Join("../..", part)
		err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel("../..", file)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			to := filepath.Join(root, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			return os.WriteFile(to, data, info.Mode())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(root, "packaging/image")
}

func writeFile(t *testing.T, file, content string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// agents makes a directory with all agents, of which one may be another.
func agents(t *testing.T, other string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"maitred", "vshd", "tremplin", "garcon"} {
		content := name
		if name == other {
			content += ", another"
		}
		writeFile(t, filepath.Join(dir, name), content)
	}
	return dir
}

// keys returns the keys of the base, of the containers' root and of the image.
func keys(t *testing.T, recipe, agents string) (base, container, image string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(recipe, "build.sh"), "--key", "--agents", agents).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if len(lines) != 3 {
		t.Fatalf("build.sh --key printed %q", out)
	}
	return lines[0], lines[1], lines[2]
}

func TestKeysChangeWithTheirInputsOnly(t *testing.T) {
	base, container, img := keys(t, copyRecipe(t), agents(t, ""))

	for name, test := range map[string]struct {
		file                   string // of the recipe, that gets one more line
		agent                  string // that is another
		base, container, image bool   // whether that key changes
	}{
		"nothing but the place":   {},
		"another package":         {"packages.list", "", true, false, true},
		"another module":          {"modules-root.list", "", true, false, true},
		"an early module":         {"modules-initramfs.list", "", true, false, true},
		"the customization":       {"customize.sh", "", true, false, true},
		"the base's script":       {"base.sh", "", true, false, true},
		"the roots' script":       {"debian.sh", "", true, true, true},
		"the container's script":  {"container.sh", "", false, true, true},
		"a package in containers": {"container/packages.list", "", false, true, true},
		"a file in containers":    {"container/files/etc/sudoers.d/10-auberge", "", false, true, true},
		"a container's template":  {"container/templates/hosts.tpl", "", false, true, true},
		"the cache's functions":   {"cache.sh", "", false, false, false},
		"the kernel's script":     {"extract-vmlinux.sh", "", true, false, true},
		"apt's functions":         {"../deps/apt.sh", "", true, true, true},
		"another maitred":         {"", "maitred", false, false, true},
		"another vshd":            {"", "vshd", false, false, true},
		"another tremplin":        {"", "tremplin", false, false, true},
		"another garcon":          {"", "garcon", false, false, true},
		"the initramfs's tool":    {"mkinitramfs/main.go", "", false, false, true},
		"the manifest's tool":     {"mkmanifest/main.go", "", false, false, true},
		"the documentation":       {"README.md", "", false, false, false},
		"a test":                  {"build_test.go", "", false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			recipe := copyRecipe(t)
			if test.file != "" {
				f, err := os.OpenFile(filepath.Join(recipe, test.file), os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteString("# more\n"); err != nil {
					t.Fatal(err)
				}
			}
			gotBase, gotContainer, gotImage := keys(t, recipe, agents(t, test.agent))
			for what, key := range map[string]struct {
				got, was string
				changes  bool
			}{"base": {gotBase, base, test.base}, "container": {gotContainer, container, test.container}, "image": {gotImage, img, test.image}} {
				if (key.got != key.was) != key.changes {
					t.Errorf("key of the %s: %s after %s", what, key.got, key.was)
				}
			}
		})
	}
}

// cacheTest is a recipe whose slow part is replaced by one that takes no time
// and counts: what is tested is the cache around it.
type cacheTest struct {
	t             *testing.T
	recipe, cache string
	agent, counts string
	environment   []string
}

func newCacheTest(t *testing.T) *cacheTest {
	t.Helper()
	dir := t.TempDir()
	c := &cacheTest{t: t, recipe: copyRecipe(t), cache: filepath.Join(dir, "auberge/image"), counts: filepath.Join(dir, "counts")}
	writeFile(t, filepath.Join(c.recipe, "base.sh"), `#!/bin/sh
set -eu
echo built >>`+c.counts+`
echo kernel >$1/vmlinux
[ ! -e `+c.counts+`.fail ] || exit 1
echo root >$1/rootfs.squashfs
mkdir $1/modules
echo 001-a.ko >$1/modules/order
echo module >$1/modules/001-a.ko
printf 'suite=trixie\narchitecture=amd64\nkernel_release=1.2.3\ncreated=1000\n' >$1/facts
printf 'bash\t5\tamd64\n' >$1/packages
`)
	writeFile(t, filepath.Join(c.recipe, "container.sh"), `#!/bin/sh
set -eu
echo built >>`+c.counts+`.container
echo root >$1/rootfs.squashfs
echo metadata >$1/metadata.tar.xz
printf 'systemd\t257\tamd64\n' >$1/packages
`)
	agent, err := buildAgent(dir)
	if err != nil {
		t.Fatal(err)
	}
	c.agent = agent
	// Go's own cache would move along with XDG_CACHE_HOME, and start cold.
	goCache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	c.environment = []string{"XDG_CACHE_HOME=" + dir, "GOCACHE=" + strings.TrimSpace(string(goCache))}
	return c
}

func (c *cacheTest) build(args ...string) (string, error) {
	args = append([]string{"--maitred", c.agent, "--vshd", c.agent, "--tremplin", c.agent, "--garcon", c.agent}, args...)
	return runBuild(filepath.Join(c.recipe, "build.sh"), c.environment, args...)
}

func (c *cacheTest) mustBuild(args ...string) string {
	c.t.Helper()
	dir, err := c.build(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	m, err := image.Read(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := m.Check(dir); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// bases is how often the base was built, containers how often their root.
func (c *cacheTest) bases() int { return lines(c.counts) }

func (c *cacheTest) containers() int { return lines(c.counts + ".container") }

func lines(file string) int {
	data, _ := os.ReadFile(file)
	return bytes.Count(data, []byte("\n"))
}

func (c *cacheTest) changeAgent() {
	c.t.Helper()
	f, err := os.OpenFile(c.agent, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		c.t.Fatal(err)
	}
}

func TestCacheKeepsLayersApartAndOldEntriesAway(t *testing.T) {
	c := newCacheTest(t)
	first := c.mustBuild()
	if again := c.mustBuild(); again != first {
		t.Errorf("the same inputs gave %s, then %s", first, again)
	}
	for range 5 {
		c.changeAgent()
		c.mustBuild()
	}
	if n := c.bases(); n != 1 {
		t.Errorf("the base was built %d times, want once", n)
	}
	if n := c.containers(); n != 1 {
		t.Errorf("the containers' root was built %d times, want once", n)
	}
	left := func() []string {
		t.Helper()
		images, err := filepath.Glob(filepath.Join(c.cache, "images/*"))
		if err != nil {
			t.Fatal(err)
		}
		return images
	}
	// Somebody may be testing with any of these.
	if all := left(); len(all) != 6 {
		t.Errorf("images left: %q, want all 6", all)
	}
	for _, image := range left() {
		if image != first {
			continue
		}
		yesterday := time.Now().Add(-24 * time.Hour)
		if err := os.Chtimes(image, yesterday, yesterday); err != nil {
			t.Fatal(err)
		}
	}
	c.changeAgent()
	c.mustBuild()
	if after := left(); len(after) != 6 || slices.Contains(after, first) {
		t.Errorf("images left: %q, want all but the one that was used yesterday", after)
	}
	if temporary, _ := filepath.Glob(filepath.Join(c.cache, "tmp.*")); len(temporary) > 0 {
		t.Errorf("left behind: %q", temporary)
	}
}

func TestTwoBuildersAtOnceMakeOneImage(t *testing.T) {
	c := newCacheTest(t)
	var wg sync.WaitGroup
	dirs := make([]string, 3)
	errs := make([]error, len(dirs))
	for i := range dirs {
		wg.Go(func() { dirs[i], errs[i] = c.build() })
	}
	wg.Wait()
	for i := range dirs {
		if errs[i] != nil || dirs[i] != dirs[0] {
			t.Errorf("builder %d: %s, %v", i, dirs[i], errs[i])
		}
	}
	if n := c.bases(); n != 1 {
		t.Errorf("the base was built %d times, want once", n)
	}
}

func TestWhatIsHalfDoneOrDamagedIsBuiltAnew(t *testing.T) {
	c := newCacheTest(t)
	broken := writeFile(t, c.counts+".fail", "")
	if _, err := c.build(); err == nil {
		t.Fatal("a failing base.sh went unnoticed")
	}
	if left, _ := filepath.Glob(filepath.Join(c.cache, "*/*")); len(left) > 0 {
		t.Errorf("a failed build left %q", left)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}

	// As left behind by a builder that was killed.
	stale := filepath.Join(c.cache, "tmp.stale")
	if err := os.MkdirAll(filepath.Join(stale, "base"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := c.mustBuild()
	if _, err := os.Stat(stale); err == nil {
		t.Error("what a killed builder left is still there")
	}

	for _, damage := range []string{image.InitramfsFile, image.RootFile, image.ManifestFile} {
		writeFile(t, filepath.Join(dir, damage), "damaged")
		if again := c.mustBuild(); again != dir {
			t.Errorf("after damage to %s: %s, want %s", damage, again, dir)
		}
	}
	// The root is the base's own file: that had to be built again too.
	if n := c.bases(); n != 3 {
		t.Errorf("the base was built %d times, want the failure, the first, and after the damage", n)
	}
}

func TestOutIsACopyAndReplacesOnlyImages(t *testing.T) {
	c := newCacheTest(t)
	out := filepath.Join(t.TempDir(), "deep/image")
	if got := c.mustBuild("--out", out); got != out {
		t.Errorf("printed %s, want %s", got, out)
	}
	old, err := image.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	c.changeAgent()
	c.mustBuild("--out", out)
	if m, err := image.Read(out); err != nil || m.Key == old.Key {
		t.Errorf("an older image was not replaced (%v)", err)
	}

	precious := t.TempDir()
	writeFile(t, filepath.Join(precious, "thesis"), "")
	if _, err := c.build("--out", precious); err == nil {
		t.Error("a directory that is no image was replaced")
	}
	if _, err := os.Stat(filepath.Join(precious, "thesis")); err != nil {
		t.Error(err)
	}
}

func TestBuildRefusesWhatItCannotUse(t *testing.T) {
	c := newCacheTest(t)
	for name, args := range map[string][]string{
		"a missing agent":           {"--maitred", "/nonexistent"},
		"a dynamically linked init": {"--maitred", "/bin/sh"},
		"an option without a value": {"--out"},
		"an unknown option":         {"--fast"},
	} {
		if dir, err := c.build(args...); err == nil {
			t.Errorf("%s: made %s", name, dir)
		}
	}
}

// bzImage wraps a compressed kernel as the boot protocol describes it.
func bzImage(payload []byte) []byte {
	const sectors = 2 // of real-mode code, after the first
	const offset = 64 // of the payload in what follows
	img := make([]byte, (sectors+1)*512+offset, (sectors+1)*512+offset+len(payload))
	img[0x1f1] = sectors
	copy(img[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(img[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(img[0x248:], offset)
	binary.LittleEndian.PutUint32(img[0x24c:], uint32(len(payload)))
	return append(img, payload...)
}

func compress(t *testing.T, data []byte, command ...string) []byte {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", command, err)
	}
	return out
}

func TestExtractVmlinux(t *testing.T) {
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 50000)...)
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(kernel)))
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(kernel)
	w.Close()
	xz := append(compress(t, kernel, "xz", "--check=crc32"), size...)

	good := map[string][]byte{
		"xz":   xz,
		"zstd": append(compress(t, kernel, "zstd"), size...),
		"gzip": gz.Bytes(), // which ends with the size
	}
	for name, payload := range good {
		t.Run(name, func(t *testing.T) {
			// What follows the payload is none of it.
			out, err := extract(t, append(bzImage(payload), "signature"...))
			if err != nil || !bytes.Equal(out, kernel) {
				t.Errorf("%d bytes, %v; want the kernel's %d", len(out), err, len(kernel))
			}
		})
	}

	image := bzImage(xz)
	noELF := append(compress(t, []byte("no kernel"), "xz", "--check=crc32"), 9, 0, 0, 0)
	wrongSize := slices.Clone(image)
	wrongSize[len(wrongSize)-4]++
	oldProtocol := slices.Clone(image)
	oldProtocol[0x207] = 1
	bad := map[string][]byte{
		"an empty file":            nil,
		"an ELF file":              kernel,
		"an image cut short":       image[:len(image)-100],
		"a size that is wrong":     wrongSize,
		"something else inside":    bzImage(noELF),
		"an unknown compression":   bzImage([]byte("what is this, then?")),
		"an old boot protocol":     oldProtocol,
		"a compressed stream hurt": bzImage(append(slices.Clone(xz[:len(xz)/2]), size...)),
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		t.Run(name, func(t *testing.T) {
			if _, err := extract(t, bad[name]); err == nil {
				t.Error("no error")
			}
		})
	}
}

func extract(t *testing.T, image []byte) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	in := writeFile(t, filepath.Join(dir, "vmlinuz"), string(image))
	out := filepath.Join(dir, "vmlinux")
	if err := exec.Command("./extract-vmlinux.sh", in, out).Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// aptConfig makes an apt configuration of its own with these sources (the
// name's suffix decides the format) and without lists, like a fresh machine.
func aptConfig(t *testing.T, sources map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "sources.list.d"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range sources {
		writeFile(t, filepath.Join(dir, "sources.list.d", name), strings.ReplaceAll(content, "DIR", dir))
	}
	return writeFile(t, filepath.Join(dir, "apt.conf"), strings.ReplaceAll(`
		Dir::State "DIR/state";
		Dir::Cache "DIR/cache";
		Dir::Etc::SourceList "/dev/null";
		Dir::Etc::SourceParts "DIR/sources.list.d";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; "i386"; };
	`, "DIR", dir))
}

func TestMirrorsAreThoseOfAptsConfiguration(t *testing.T) {
	release, err := exec.Command("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").Output()
	if err != nil {
		t.Fatal(err)
	}
	code := strings.TrimSpace(string(release))
	third := "deb http://packages.example.com/apt thing-" + code + " main\n"

	for name, test := range map[string]struct {
		sources        map[string]string
		main, security []string
	}{
		"one-line sources": {
			sources: map[string]string{"a.list": "deb http://mirror.example.org/debian/ " + code + " main contrib\n" +
				"deb http://mirror.example.org/debian " + code + "-updates main\n" +
				"deb [arch=amd64] http://mirror.example.org/debian-security/ " + code + "-security main\n" + third},
			main:     []string{"http://mirror.example.org/debian"},
			security: []string{"http://mirror.example.org/debian-security"},
		},
		"deb822 sources": {
			sources: map[string]string{"a.sources": "Types: deb deb-src\nURIs: https://one.example.org/debian https://two.example.org/debian\n" +
				"Suites: " + code + " " + code + "-updates\nComponents: main\n", "b.list": third},
			main: []string{"https://one.example.org/debian", "https://two.example.org/debian"},
		},
		"a suite by its role": {
			sources:  map[string]string{"a.list": "deb http://mirror.example.org/debian stable main\ndeb http://mirror.example.org/security stable-security main\n"},
			main:     []string{"http://mirror.example.org/debian"},
			security: []string{"http://mirror.example.org/security"},
		},
		"a list of mirrors": {
			sources: map[string]string{"a.list": "deb mirror+file:DIR/sources.list.d/mirrors.txt " + code + " main\n",
				"mirrors.txt": "# ours\nhttp://near.example.org/debian/\tpriority:1\nhttp://far.example.org/debian\n"},
			main: []string{"http://near.example.org/debian", "http://far.example.org/debian"},
		},
		"third parties only": {sources: map[string]string{"a.list": third}},
	} {
		t.Run(name, func(t *testing.T) {
			config := aptConfig(t, test.sources)
			for kind, want := range map[string][]string{"main": test.main, "security": test.security} {
				cmd := exec.Command("bash", "-euo", "pipefail", "-c", ". ../deps/apt.sh; apt_mirrors "+kind)
				cmd.Env = append(os.Environ(), "APT_CONFIG="+config)
				out, err := cmd.Output()
				got := strings.Fields(string(out))
				slices.Sort(got) // among equals, apt has an order of its own
				slices.Sort(want)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%s: %q (%v), want %q", kind, got, err, want)
				}
			}
		})
	}
}
