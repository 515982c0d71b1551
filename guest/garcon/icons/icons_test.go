package icons_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guest/garcon/icons"
)

const (
	png = "\x89PNG\r\n\x1a\nrest"
	svg = "<?xml version='1.0'?><svg/>"
)

// A place is a home and a system with icons.
type place struct {
	t            *testing.T
	home, system string
	*icons.Finder
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, home: t.TempDir(), system: t.TempDir()}
	p.Finder = icons.NewFinder(icons.Config{
		Home: p.home, ConfigHome: filepath.Join(p.home, ".config"),
		DataDirs: []string{filepath.Join(p.home, ".local/share"), p.system},
		Pixmaps:  filepath.Join(p.system, "pixmaps"),
	})
	return p
}

func (p *place) write(path, text string) string {
	p.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.system, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// want checks where an icon is found; "" is nowhere.
func (p *place) want(icon string, size, scale int, path string) {
	p.t.Helper()
	pic, err := p.Find(context.Background(), icon, size, scale)
	switch {
	case path == "" && err == nil:
		p.t.Errorf("%q of %d@%d is found at %s", icon, size, scale, pic.Path)
	case path == "" && !errors.Is(err, icons.ErrNoIcon):
		p.t.Errorf("%q: %v", icon, err)
	case path != "" && err != nil:
		p.t.Error(err)
	case path != "" && !strings.HasSuffix(pic.Path, "/"+path):
		p.t.Errorf("%q of %d@%d is found at %s, want %s", icon, size, scale, pic.Path, path)
	case path != "" && pic.SVG != strings.HasSuffix(path, ".svg"):
		p.t.Errorf("%s: SVG is %v", path, pic.SVG)
	}
}

const hicolor = `[Icon Theme]
Name=Hicolor
Directories=16/apps,32/apps,48/apps,256/apps,scalable/apps,broken/apps,../../out
ScaledDirectories=32@2/apps

[16/apps]
Size=16
Type=Fixed
[32/apps]
Size=32
[32@2/apps]
Size=32
Scale=2
[48/apps]
Size=48
Type=Threshold
Threshold=4
[256/apps]
Size=256
Type=Fixed
[scalable/apps]
Size=64
MinSize=60
MaxSize=128
Type=Scalable
[broken/apps]
Size=-3
[../../out]
Size=32
`

func TestSizes(t *testing.T) {
	p := newPlace(t)
	p.write("icons/hicolor/index.theme", hicolor)
	for _, dir := range []string{"16", "32", "32@2", "48", "256"} {
		p.write("icons/hicolor/"+dir+"/apps/app.png", png)
	}
	p.write("icons/hicolor/scalable/apps/app.svg", svg)
	for _, c := range []struct {
		size, scale int
		want        string
	}{
		{16, 1, "16/apps/app.png"},
		{17, 1, "16/apps/app.png"}, // fixed, but the closest
		{33, 1, "32/apps/app.png"}, // within the threshold of 2
		{32, 2, "32@2/apps/app.png"},
		{45, 1, "48/apps/app.png"},
		{100, 1, "scalable/apps/app.svg"},
		{140, 1, "scalable/apps/app.svg"}, // 12 off
		{64, 2, "scalable/apps/app.svg"},  // by pixels: 128
		{200, 1, "256/apps/app.png"},
		{512, 1, "256/apps/app.png"},
		{1, 1, "16/apps/app.png"},
	} {
		p.want("app", c.size, c.scale, c.want)
	}
	p.want("app.png", 16, 1, "16/apps/app.png")
	p.want("none", 16, 1, "")
	p.write(filepath.Join(filepath.Dir(p.system), "out/secret.png"), png)
	p.want("secret", 32, 1, "")
	p.want("../apps/app", 32, 1, "")
}

func TestThemesAndFallbacks(t *testing.T) {
	p := newPlace(t)
	p.write(filepath.Join(p.home, ".config/gtk-3.0/settings.ini"), "[Settings]\ngtk-icon-theme-name=Mine\n")
	one := "[32/apps]\nSize=32\n"
	p.write("icons/Mine/index.theme", "[Icon Theme]\nInherits=Mother,Mine,Father,/etc,..\nDirectories=32/apps\n"+one)
	p.write("icons/Mother/index.theme", "[Icon Theme]\nInherits=Father,Mine\nDirectories=32/apps\n"+one)
	p.write("icons/Father/index.theme", "[Icon Theme]\nInherits=Mother\nDirectories=32/apps\n"+one)
	p.write("icons/hicolor/index.theme", hicolor)
	p.write("icons/Mine/32/apps/a.png", png)
	p.write("icons/Mother/32/apps/a.png", png)
	p.write("icons/Father/32/apps/b.svg", svg)
	p.write("icons/hicolor/32/apps/b.png", png)
	p.write("icons/hicolor/256/apps/c.png", png)
	p.write("icons/Mine/32/apps/c.png", "no picture")
	p.write(filepath.Join(p.home, ".local/share/icons/hicolor/16/apps/mine.png"), png)
	p.write(filepath.Join(p.home, ".icons/loose.png"), png)
	p.write("pixmaps/old.png", png)
	p.write("pixmaps/older.xpm", "/* XPM */")
	p.want("a", 32, 1, "Mine/32/apps/a.png")
	p.want("b", 32, 1, "Father/32/apps/b.svg")
	p.want("c", 32, 1, "hicolor/256/apps/c.png") // what is none is passed over
	p.want("mine", 32, 1, "hicolor/16/apps/mine.png")
	p.want("loose", 32, 1, ".icons/loose.png")
	p.want("old", 32, 1, "pixmaps/old.png")
	p.want("older", 32, 1, "")

	// A changed setting and a changed theme count at once.
	p.write(filepath.Join(p.home, ".config/gtk-3.0/settings.ini"), "[Settings]\ngtk-icon-theme-name=\"Mother\"\n")
	p.want("a", 32, 1, "Mother/32/apps/a.png")
	p.write("icons/Mother/index.theme", "what")
	p.want("a", 32, 1, "")
}

func TestThemeSpread(t *testing.T) {
	p := newPlace(t)
	var chain strings.Builder
	for i := range 100 {
		fmt.Fprintf(&chain, "t%d,", i)
		p.write(fmt.Sprintf("icons/t%d/index.theme", i), fmt.Sprintf("[Icon Theme]\nInherits=t%d\nDirectories=a\n[a]\nSize=32\n", i+1))
	}
	p.write(filepath.Join(p.home, ".config/gtk-4.0/settings.ini"), "[Settings]\ngtk-icon-theme-name=t0\n")
	p.write("icons/t31/a/near.png", png)
	p.write("icons/t90/a/far.png", png)
	p.want("near", 32, 1, "t31/a/near.png")
	p.want("far", 32, 1, "") // beyond what is followed
}

func TestAbsoluteAndOdd(t *testing.T) {
	p := newPlace(t)
	at := func(name string) string { return filepath.Join(p.system, name) }
	good := p.write("x/good.png", png)
	p.want(good, 1, 1, "x/good.png")
	p.want(p.write("x/good.svg", "<svg:svg xmlns:svg='x'/>"), 1, 1, "x/good.svg")
	sparse := p.write("x/sparse.png", png)
	if err := os.Truncate(sparse, 1<<30); err != nil {
		t.Fatal(err)
	}
	most := p.write("x/most.png", png)
	if err := os.Truncate(most, icons.MaxSize); err != nil {
		t.Fatal(err)
	}
	p.want(most, 1, 1, "x/most.png")
	over := p.write("x/over.png", png)
	if err := os.Truncate(over, icons.MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("x/fifo.png"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", at("x/zero.png")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop.png", at("x/loop.png")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("x/dir.png"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, icon := range []string{
		sparse, over, at("x/fifo.png"), at("x/zero.png"), at("x/loop.png"), at("x/dir.png"), at("x/none.png"),
		p.write("x/secret.txt", "password"), p.write("x/fake.png", "password"), p.write("x/fake.svg", "password"),
		p.write("x/packed.svg", "\x1f\x8b\x08"), p.write("x/packed.svgz", svg), p.write("x/empty.png", ""),
		"", "a/b", "..", ".", "a\x00b", ".png",
	} {
		p.want(icon, 32, 1, "")
	}
}

// The themes that Debian has.
func TestRealThemes(t *testing.T) {
	f := icons.NewFinder(icons.Config{Home: t.TempDir(), DataDirs: []string{"/usr/share"}})
	pic, err := f.Find(context.Background(), "text-x-generic", 48, 1)
	if err != nil {
		t.Fatal(err, "(needs the package adwaita-icon-theme)")
	}
	if len(pic.Data) == 0 || !strings.HasPrefix(pic.Path, "/usr/share/icons/Adwaita/") {
		t.Errorf("found at %s", pic.Path)
	}
}
