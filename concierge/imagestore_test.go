package concierge

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/concierge/images"
	imagepkg "github.com/auberge-vm/auberge/packaging/image"
)

// packageImage puts an image in the place of the packaged one.
func (b *bed) packageImage(key string) {
	b.t.Helper()
	writeImage(b.t, b.cfg.ImageDir)
	m := imagepkg.Manifest{Format: imagepkg.Format, Key: key, Suite: "trixie", KernelRelease: "6.12"}
	// Each has another root, of the same size.
	if err := os.WriteFile(filepath.Join(b.cfg.ImageDir, imagepkg.RootFile), []byte("root "+key), 0o644); err != nil {
		b.t.Fatal(err)
	}
	err := m.AddFiles(b.cfg.ImageDir, imagepkg.KernelFile, imagepkg.InitramfsFile, imagepkg.RootFile)
	text, jerr := json.Marshal(m)
	if err = errors.Join(err, jerr, os.WriteFile(filepath.Join(b.cfg.ImageDir, imagepkg.ManifestFile), text, 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// imageLines says of each image what it is and who runs it.
func (b *bed) imageLines(s *Service) string {
	b.t.Helper()
	list, err := s.ListImages(b.t.Context(), alice)
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for _, i := range list {
		line := i["key"].(string)
		for _, flag := range []string{"current", "packaged", "previous"} {
			if i[flag] == true {
				line += " " + flag
			}
		}
		lines = append(lines, fmt.Sprint(line, " ", i["vms"]))
	}
	return strings.Join(lines, ", ")
}

func (b *bed) wantImages(s *Service, want string) {
	b.t.Helper()
	if got := b.imageLines(s); got != want {
		b.t.Errorf("the images are %s; want %s", got, want)
	}
}

func (b *bed) imageOf(s *Service, name string) string {
	b.t.Helper()
	st, err := s.GetState(b.t.Context(), alice)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, v := range st.VMs {
		if v["name"] == name {
			return fmt.Sprint(v["image"])
		}
	}
	return ""
}

// VMs keep the image with which they were started, and new ones get the
// current one.
func TestImages(t *testing.T) {
	b := newBed(t)
	b.cfg.UpdateImage = true
	b.packageImage("a")
	s := b.serve()
	await(t, "the first image is taken into use", func() bool {
		list, _ := s.ListImages(t.Context(), alice)
		return list[0]["stored"] == true
	})
	b.mustStart(s, "x")
	b.packageImage("b")
	if err := os.Remove(filepath.Join(b.cfg.ImageDir, imagepkg.KernelFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateImage(t.Context(), alice); !errors.Is(err, images.ErrDamaged) {
		t.Errorf("a package that is damaged: %v", err)
	}
	b.mustStart(s, "y") // with what is there
	b.stop(s, "y")
	b.packageImage("b")
	s.Close()
	s = b.serve()
	await(t, "the next image is taken into use", func() bool { return strings.HasPrefix(b.imageLines(s), "b current packaged") })
	b.mustStart(s, "y")
	if x, y := b.imageOf(s, "x"), b.imageOf(s, "y"); x != "a" || y != "b" {
		t.Errorf("x runs image %q, y %q", x, y)
	}
	b.wantImages(s, "b current packaged [64101/y], a previous [64101/x]")
	if d, err := s.RollbackImage(t.Context(), alice); err != nil || d["key"] != "a" || d["changed"] != true {
		t.Errorf("rollback: %v, %v", d, err)
	}
	b.wantImages(s, "a current [64101/x], b packaged [64101/y]")
	s.Close()
	s = b.serve()
	s.updateImage() // by itself it undoes nothing
	b.wantImages(s, "a current [64101/x], b packaged [64101/y]")
	if _, err := s.RollbackImage(t.Context(), alice); !errors.Is(err, images.ErrNoEarlier) {
		t.Errorf("a second rollback: %v", err)
	}
	if d, err := s.UpdateImage(t.Context(), alice); err != nil || d["key"] != "b" || d["changed"] != true {
		t.Errorf("update: %v, %v", d, err)
	}
	if d, err := s.UpdateImage(t.Context(), alice); err != nil || d["changed"] != false {
		t.Errorf("a second update: %v, %v", d, err)
	}
	// Others do not learn who runs what.
	if list, err := s.ListImages(t.Context(), subject(5)); err != nil || len(list) != 2 || len(list[0]["vms"].([]string))+len(list[1]["vms"].([]string)) != 0 {
		t.Errorf("somebody else sees %v, %v", list, err)
	}
	// The image of a VM that runs stays, however old.
	for _, key := range []string{"c", "d", "e", "f"} {
		b.packageImage(key)
		if _, err := s.UpdateImage(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.imageLines(s); !strings.Contains(got, "a [64101/x]") || strings.Contains(got, "c []") {
		t.Errorf("the images are %s", got)
	}
	b.stop(s, "x")
	b.stop(s, "y")
	b.gone()
}

// Without being asked, a service that is told so leaves the images alone.
func TestImagesByHand(t *testing.T) {
	b := newBed(t)
	b.packageImage("a")
	s := b.serve()
	s.updateImage()
	b.wantImages(s, "a current packaged []")
	b.mustStart(s, "x")
	b.wantImages(s, "a current packaged [64101/x]")
	b.packageImage("b")
	b.wantImages(s, "b current packaged [], a [64101/x]")
	if _, err := s.UpdateImage(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	b.packageImage("c")
	s.updateImage()
	b.wantImages(s, "b current [], c packaged [], a [64101/x]")
	// A current image that is damaged is not the end.
	if err := os.Remove(filepath.Join(b.cfg.StateDir, "images", "b", imagepkg.RootFile)); err != nil {
		t.Fatal(err)
	}
	b.mustStart(s, "y")
	if got := b.imageOf(s, "y"); got != "c" {
		t.Errorf("y runs %q", got)
	}
	b.stop(s, "x")
	b.stop(s, "y")
}
