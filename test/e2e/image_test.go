package e2e

import (
	"os"
	"path/filepath"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	imagepkg "github.com/auberge-vm/auberge/packaging/image"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// A VM runs on, and another one starts, when the package from which their
// image came is removed.
func TestImageOutlivesItsPackage(t *testing.T) {
	t.Parallel()
	b := newBedWith(t, testbed.Options{})
	packaged := filepath.Join(b.Dir, "packaged")
	if err := os.CopyFS(packaged, os.DirFS(b.Image)); err != nil {
		t.Fatal(err)
	}
	m, err := imagepkg.Read(packaged)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--image-dir", packaged, "--image-update", "auto"}
	b.startConcierge(args...)
	alice, root := b.client(testbed.Alice), b.client(testbed.Root)
	images := func(c *client) []map[string]godbus.Variant {
		t.Helper()
		var list []map[string]godbus.Variant
		if err := c.own("ListImages").Store(&list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	eventually(t, "the image is taken into use", func() (string, bool) {
		list := images(alice)
		return list[0]["stored"].String(), list[0]["stored"].Value() == true
	})
	alice.start(&pb.StartVmRequest{Name: "x"})
	if err := os.RemoveAll(packaged); err != nil {
		t.Fatal(err)
	}
	b.restartConcierge(args...)
	alice.start(&pb.StartVmRequest{Name: "y"})
	if got := alice.vsh("x", "cat", "/etc/hostname") + alice.vsh("y", "uname", "-r"); got == "" {
		t.Error("the VMs say nothing")
	}
	state := alice.state()
	for _, vm := range []string{"64101/x", "64101/y"} {
		if got := state.vms[vm]["image"].Value(); got != m.Key {
			t.Errorf("%s runs image %v, want %s", vm, got, m.Key)
		}
	}
	if list := images(root); len(list) != 1 || list[0]["current"].Value() != true || list[0]["packaged"].Value() != false || len(list[0]["vms"].Value().([]string)) != 2 {
		t.Errorf("the images are %v", list)
	}
	if list := images(b.client(testbed.Bob)); len(list[0]["vms"].Value().([]string)) != 0 {
		t.Errorf("bob sees %v", list)
	}
	if err := root.own("UpdateImage").Err; err == nil {
		t.Error("an update without a package")
	}
	alice.stop("x")
	alice.stop("y")
	b.gone()
}
