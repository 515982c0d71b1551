package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// A bed is a store and a packaged image.
type bed struct {
	t             *testing.T
	dir, packaged string
}

func newBed(t *testing.T) *bed {
	t.Helper()
	return &bed{t, filepath.Join(t.TempDir(), "images"), filepath.Join(t.TempDir(), "image")}
}

// install puts an image in the place of the packaged one, as a package does.
func (b *bed) install(key string) {
	b.t.Helper()
	if err := os.RemoveAll(b.packaged); err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(b.packaged, 0o755); err != nil {
		b.t.Fatal(err)
	}
	m := image.Manifest{Format: image.Format, Key: key, Suite: "trixie", KernelRelease: "6.12-" + key, Created: time.Unix(1_700_000_000, 0)}
	names := []string{image.KernelFile, image.InitramfsFile, image.RootFile}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(b.packaged, name), []byte(name+" of "+key), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := m.AddFiles(b.packaged, names...); err != nil {
		b.t.Fatal(err)
	}
	b.write(m)
}

func (b *bed) write(m image.Manifest) {
	b.t.Helper()
	text, err := json.Marshal(m)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.packaged, image.ManifestFile), text, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) open() *Store {
	b.t.Helper()
	s, err := Open(b.dir, b.packaged, slog.New(slog.NewTextHandler(b.t.Output(), nil)))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bed) update(s *Store, automatic, want bool) {
	b.t.Helper()
	if changed, err := s.Update(b.t.Context(), automatic); err != nil || changed != want {
		b.t.Fatalf("update: %v, %v, want %v", changed, err, want)
	}
}

// usable returns the key of the image that a new VM would get, which must be
// whole.
func (b *bed) usable(s *Store) string {
	b.t.Helper()
	for _, dir := range s.Directories() {
		if m, err := image.Read(dir); err == nil && m.Check(dir) == nil {
			return m.Key
		}
	}
	b.t.Error("no image can be used")
	return ""
}

func (b *bed) wantCurrent(s *Store, key string) {
	b.t.Helper()
	if got := b.usable(s); got != key {
		b.t.Errorf("new VMs get %q, want %q", got, key)
	}
}

// words says of each listed image what it is.
func words(list []Image) string {
	var all []string
	for _, i := range list {
		w := i.Key
		for _, f := range []struct {
			on   bool
			word string
		}{{i.Current, "current"}, {i.Packaged, "packaged"}, {i.Previous, "previous"}, {i.Stored, "stored"}} {
			if f.on {
				w += " " + f.word
			}
		}
		all = append(all, w)
	}
	return strings.Join(all, ", ")
}

func TestImagesComeAndGo(t *testing.T) {
	b := newBed(t)
	b.install("a")
	s := b.open()
	b.wantCurrent(s, "a")
	if got, want := words(s.List()), "a current packaged"; got != want {
		t.Errorf("at first: %s, want %s", got, want)
	}
	if _, err := s.Rollback(); !errors.Is(err, ErrNoEarlier) {
		t.Errorf("a rollback with nothing before: %v", err)
	}
	b.update(s, true, true)
	b.update(s, true, false)
	b.update(s, false, false)
	for _, name := range []string{image.KernelFile, image.InitramfsFile, image.RootFile} {
		if fi, err := os.Stat(filepath.Join(s.path("a"), name)); err != nil || fi.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	b.install("b") // and a is no more
	b.wantCurrent(s, "a")
	b.update(s, true, true)
	b.wantCurrent(s, "b")
	if got, want := words(s.List()), "b current packaged stored, a previous stored"; got != want {
		t.Errorf("after an update: %s, want %s", got, want)
	}
	if key, err := s.Rollback(); err != nil || key != "a" {
		t.Fatalf("rollback to %q, %v", key, err)
	}
	// It stays, also in the next service, until another image comes.
	s = b.open()
	b.update(s, true, false)
	b.wantCurrent(s, "a")
	if got, want := words(s.List()), "a current stored, b packaged stored"; got != want {
		t.Errorf("after a rollback: %s, want %s", got, want)
	}
	if _, err := s.Rollback(); !errors.Is(err, ErrNoEarlier) {
		t.Errorf("a rollback beyond the first: %v", err)
	}
	b.update(s, false, true) // or until somebody asks
	b.wantCurrent(s, "b")
	if _, err := s.Rollback(); err != nil {
		t.Fatal(err)
	}
	b.install("c")
	b.update(s, true, true)
	b.wantCurrent(s, "c")
	if key, err := s.Rollback(); err != nil || key != "a" {
		t.Errorf("rollback to %q, %v", key, err)
	}
	if i := s.List()[0]; i.Kernel != "6.12-a" || i.Suite != "trixie" || i.Size != int64(len("vmlinux of a"+"initramfs.cpio of a"+"rootfs.squashfs of a")) || !i.Created.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("%+v", i)
	}
	// Without a package, what is there can be used and changed.
	if err := os.RemoveAll(b.packaged); err != nil {
		t.Fatal(err)
	}
	s = b.open()
	b.wantCurrent(s, "a")
	if _, err := s.Update(t.Context(), true); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("an update without a package: %v", err)
	}
}

func TestOldImagesGo(t *testing.T) {
	b := newBed(t)
	b.install("v0")
	s := b.open()
	for i := range 7 {
		b.install(fmt.Sprint("v", i))
		b.update(s, true, true)
		past := time.Now().Add(time.Duration(i-100) * time.Hour)
		if err := os.Chtimes(s.path(fmt.Sprint("v", i)), past, past); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if _, err := s.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
	b.wantCurrent(s, "v2")
	if err := s.Prune(map[string]bool{"v0": true}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.keys(), []string{"v6", "v5", "v4", "v2", "v0"}; !slices.Equal(got, want) {
		t.Errorf("%q are left, want %q", got, want)
	}
	// What has gone is not gone back to.
	if key, err := s.Rollback(); err != nil || key != "v0" {
		t.Errorf("rollback to %q, %v", key, err)
	}
}

// A packaged image that is not what its manifest says is refused, and the one
// in use stays.
func TestDamagedPackages(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(b *bed) error
		want   error
	}{
		"another content": {func(b *bed) error {
			return os.WriteFile(filepath.Join(b.packaged, image.RootFile), []byte(image.RootFile+" of c"), 0o644)
		}, ErrDamaged},
		"half a kernel": {func(b *bed) error { return os.Truncate(filepath.Join(b.packaged, image.KernelFile), 3) }, ErrDamaged},
		"no kernel":     {func(b *bed) error { return os.Remove(filepath.Join(b.packaged, image.KernelFile)) }, ErrDamaged},
		"a FIFO": {func(b *bed) error {
			os.Remove(filepath.Join(b.packaged, image.KernelFile))
			return unix.Mkfifo(filepath.Join(b.packaged, image.KernelFile), 0o644)
		}, ErrDamaged},
		"a link": {func(b *bed) error {
			os.Remove(filepath.Join(b.packaged, image.KernelFile))
			return os.Symlink("/etc/passwd", filepath.Join(b.packaged, image.KernelFile))
		}, ErrDamaged},
		"no manifest": {func(b *bed) error { return os.Remove(filepath.Join(b.packaged, image.ManifestFile)) }, ErrNotInstalled},
		"a key that leaves the store": {func(b *bed) error {
			m, err := image.Read(b.packaged)
			m.Key = "../b"
			b.write(*m)
			return err
		}, ErrDamaged},
		"a file that leaves it": {func(b *bed) error {
			m, err := image.Read(b.packaged)
			m.Files = append(m.Files, image.File{Name: "../x"})
			b.write(*m)
			return err
		}, ErrDamaged},
		"a file for which there is no room": {func(b *bed) error {
			m, err := image.Read(b.packaged)
			m.Files = append(m.Files, image.File{Name: "x", Size: 1 << 60}, image.File{Name: "y", Size: 1 << 62})
			b.write(*m)
			return err
		}, ErrNoSpace},
		"a list without kernel": {func(b *bed) error {
			m, err := image.Read(b.packaged)
			m.Files = m.Files[1:]
			b.write(*m)
			return err
		}, ErrDamaged},
		"another format": {func(b *bed) error {
			m, err := image.Read(b.packaged)
			m.Format++
			b.write(*m)
			return err
		}, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.install("a")
			s := b.open()
			b.update(s, true, true)
			b.install("b")
			if err := test.damage(b); err != nil {
				t.Fatal(err)
			}
			for _, automatic := range []bool{true, false} {
				if changed, err := s.Update(t.Context(), automatic); !errors.Is(err, test.want) || changed {
					t.Errorf("update: %v, %v; want %v", changed, err, test.want)
				}
			}
			b.wantCurrent(s, "a")
			if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 2 {
				t.Errorf("in the store are %v, %v", entries, err)
			}
			b.install("b")
			b.update(s, true, true)
			b.wantCurrent(s, "b")
		})
	}
}

// An image of the store that is damaged is not used, and asking for the same
// one again mends it.
func TestDamagedStore(t *testing.T) {
	b := newBed(t)
	b.install("a")
	s := b.open()
	b.update(s, true, true)
	kernel := filepath.Join(s.path("a"), image.KernelFile)
	if err := os.WriteFile(kernel, []byte("vmlinux of x"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.update(s, false, false)
	if text, err := os.ReadFile(kernel); err != nil || string(text) != "vmlinux of a" {
		t.Errorf("the kernel is %q, %v", text, err)
	}
	if err := os.Remove(kernel); err != nil {
		t.Fatal(err)
	}
	b.wantCurrent(s, "a") // where it is packaged
	if got, want := words(s.List()), "a current packaged"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	b.update(b.open(), true, false)
	b.wantCurrent(s, "a")
	if !s.whole("a") {
		t.Error("it is still damaged")
	}
	// So is what cannot be read of the decisions.
	for _, text := range []string{"{", `{"current":"../../etc","earlier":["/x",""]}`} {
		if err := os.WriteFile(filepath.Join(b.dir, stateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s = b.open()
		b.wantCurrent(s, "a")
		if dirs := s.Directories(); len(dirs) != 1 || dirs[0] != b.packaged {
			t.Errorf("of %s: %q", text, dirs)
		}
	}
	b.update(s, true, true)
}

// A service that is killed at any step leaves an image that can be used, and
// the next one comes to where it wanted to go.
func TestCrashes(t *testing.T) {
	type died struct{}
	reached := map[string]bool{}
	// crash runs f and stops it at the nth step.
	crash := func(s *Store, n int, f func()) (step string) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(died); !ok {
					panic(r)
				}
			}
		}()
		s.at = func(name string) {
			if n--; n < 0 {
				step = name
				panic(died{})
			}
		}
		f()
		return ""
	}
	for _, damaged := range []bool{false, true} {
		for n := 0; ; n++ {
			b := newBed(t)
			b.install("a")
			s := b.open()
			b.update(s, true, true)
			if damaged { // the image is put in the place of another of its name
				if err := os.Mkdir(s.path("b"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			b.install("b")
			step := crash(s, n, func() { s.Update(t.Context(), true) })
			if step == "" {
				break
			}
			reached[step] = true
			s = b.open()
			b.wantCurrent(s, "a")
			b.update(s, true, true)
			b.wantCurrent(s, "b")
			if key, err := s.Rollback(); err != nil || key != "a" {
				t.Errorf("killed at %s: rollback to %q, %v", step, key, err)
			}
			if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 3 {
				t.Errorf("killed at %s, in the store are %v, %v", step, entries, err)
			}
		}
	}
	b := newBed(t)
	s := b.open()
	for i := range 5 {
		b.install(fmt.Sprint("v", i))
		b.update(s, true, true)
	}
	step := crash(s, 0, func() { s.Prune(nil) })
	reached[step] = true
	s = b.open()
	b.wantCurrent(s, "v4")
	if err := s.Prune(nil); err != nil {
		t.Fatal(err)
	}
	if got := s.keys(); len(got) != kept {
		t.Errorf("%q are left", got)
	}
	for _, want := range []string{"made", "copied", "whole", "moved", "installed", "pruned"} {
		if !reached[want] {
			t.Errorf("nobody was killed at %q", want)
		}
	}
}

// One at a time, and not longer than there is time for.
func TestUpdatesAreOneAtATime(t *testing.T) {
	b := newBed(t)
	b.install("a")
	s := b.open()
	s.at = func(string) {
		s.at = nil
		if _, err := s.Update(t.Context(), false); !errors.Is(err, ErrBusy) {
			t.Errorf("a second update: %v", err)
		}
		if _, err := s.Rollback(); !errors.Is(err, ErrBusy) {
			t.Errorf("a rollback during an update: %v", err)
		}
		if err := s.Prune(nil); !errors.Is(err, ErrBusy) {
			t.Errorf("a second prune: %v", err)
		}
	}
	b.update(s, false, true)
	b.install("b")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Update(ctx, false); !errors.Is(err, context.Canceled) {
		t.Errorf("an update without time: %v", err)
	}
	b.wantCurrent(s, "a")
	if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 2 {
		t.Errorf("in the store are %v, %v", entries, err)
	}
}
