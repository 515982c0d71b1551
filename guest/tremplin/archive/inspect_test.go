package archive_test

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
)

// Incus unpacks an image's archive itself and then writes beside rootfs, as
// root of the VM: a link there would say where to.
func TestAnImageThatLeadsOutIsRefused(t *testing.T) {
	pack := func(headers ...tar.Header) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "/etc"}
	}
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	if err := archive.Inspect(pack(dir("./"), file("./metadata.yaml"), dir("templates/"), file("templates/hosts.tpl"),
		dir("rootfs/"), link("rootfs/bin"), link("./rootfs/sbin"), file("README"))); err != nil {
		t.Error("an image is refused:", err)
	}
	for _, bad := range []tar.Header{
		link("backup.yaml"), link("metadata.yaml"), link("templates"), link("templates/x"), link("rootfs"), file("rootfs"),
		link("x/rootfs/y"), {Name: "metadata.yaml", Typeflag: tar.TypeLink, Linkname: "rootfs/etc/x"},
		{Name: "x", Typeflag: tar.TypeChar}, file("../x"), file("/x"), dir("rootfs/../../x"),
	} {
		if err := archive.Inspect(pack(file("metadata.yaml"), bad)); err == nil {
			t.Errorf("%q of the type %q was taken", bad.Name, bad.Typeflag)
		}
	}
	if archive.Inspect(strings.NewReader("no archive")) == nil {
		t.Error("what is no archive was taken")
	}
}
