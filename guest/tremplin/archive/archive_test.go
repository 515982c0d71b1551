package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
)

const metadata = "architecture: x86_64\ncreation_date: 1700000000\nproperties: {os: debian, n: 5}\ntemplates:\n  /etc/shadow: {when: [start], template: evil.tpl}\n"

type entry struct {
	name, content, link string
	kind                byte
}

func packed(entries ...entry) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o4755, Size: int64(len(e.content)), Uid: 1000,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.trusted.overlay.opaque": "y"}}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		io.WriteString(w, e.content)
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

var (
	meta = entry{name: "metadata.yaml", content: metadata}
	root = entry{name: "rootfs/", kind: tar.TypeDir}
)

func list(t testing.TB, data []byte) map[string]*tar.Header {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(data))
	all := map[string]*tar.Header{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[h.Name] != nil {
			t.Fatalf("%s twice", h.Name)
		}
		all[h.Name] = h
	}
}

func TestAContainerComesThrough(t *testing.T) {
	var out bytes.Buffer
	m, counts, err := archive.Clean(&out, bytes.NewReader(packed(meta, root,
		entry{name: "./rootfs/bin/sh", content: "#!"}, entry{name: "rootfs/etc/", kind: tar.TypeDir},
		entry{name: "rootfs/sh", kind: tar.TypeLink, link: "rootfs/bin/sh"},
		entry{name: "rootfs/abs", kind: tar.TypeSymlink, link: "/etc/passwd"},
		entry{name: "rootfs/dev/sda", kind: tar.TypeBlock}, entry{name: "rootfs/whiteout", kind: tar.TypeChar},
		entry{name: "templates/", kind: tar.TypeDir}, entry{name: "templates/evil.tpl", content: "{% include %}"})), archive.Check{})
	if err != nil || m.Architecture != "x86_64" || counts.Bytes != 2 || m.Properties["os"] != "debian" || m.Properties["n"] != "5" {
		t.Fatal(m, counts, err)
	}
	got := list(t, out.Bytes())
	for _, name := range []string{"metadata.yaml", "rootfs/", "rootfs/bin/sh", "rootfs/etc/", "rootfs/sh", "rootfs/abs", "rootfs/whiteout"} {
		if got[name] == nil {
			t.Errorf("no %s", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s came through", name)
	}
	sh := list(t, out.Bytes())["rootfs/bin/sh"]
	if sh.Mode != 0o4755 || sh.Uid != 1000 || sh.PAXRecords["SCHILY.xattr.security.capability"] != "cap" || sh.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] != "" {
		t.Errorf("%+v", sh)
	}
}

func TestHostileArchives(t *testing.T) {
	file := func(name string) entry { return entry{name: name, content: "x"} }
	for name, entries := range map[string][]entry{
		"rootfs is a link":                 {meta, {name: "rootfs", kind: tar.TypeSymlink, link: "/"}},
		"rootfs twice":                     {meta, root, {name: "rootfs", kind: tar.TypeSymlink, link: "/"}},
		"rootfs a hard link":               {meta, {name: "rootfs", kind: tar.TypeLink, link: "/etc"}},
		"templates is a link":              {meta, root, {name: "templates", kind: tar.TypeSymlink, link: "/etc"}},
		"another top":                      {meta, root, file("backup.yaml")},
		"exec-output":                      {meta, root, {name: "exec-output", kind: tar.TypeSymlink, link: "/etc"}},
		"leads out":                        {meta, root, file("rootfs/../../etc/passwd")},
		"absolute":                         {meta, root, file("/etc/passwd")},
		"beneath a link":                   {meta, root, {name: "rootfs/a", kind: tar.TypeSymlink, link: "/etc"}, file("rootfs/a/passwd")},
		"a directory becomes a link":       {meta, root, {name: "rootfs/a/", kind: tar.TypeDir}, {name: "rootfs/a", kind: tar.TypeSymlink, link: "/etc"}},
		"an implied directory too":         {meta, root, file("rootfs/a/b"), {name: "rootfs/a", kind: tar.TypeSymlink, link: "/etc"}},
		"a link becomes a directory":       {meta, root, {name: "rootfs/a", kind: tar.TypeSymlink, link: "/etc"}, {name: "rootfs/a/", kind: tar.TypeDir}},
		"a file twice":                     {meta, root, file("rootfs/a"), file("rootfs/./a")},
		"hard link out":                    {meta, root, {name: "rootfs/a", kind: tar.TypeLink, link: "/etc/shadow"}},
		"hard link to nothing":             {meta, root, {name: "rootfs/a", kind: tar.TypeLink, link: "rootfs/b"}},
		"hard link to a link":              {meta, root, {name: "rootfs/b", kind: tar.TypeSymlink, link: "/etc/shadow"}, {name: "rootfs/a", kind: tar.TypeLink, link: "rootfs/b"}},
		"hard link to metadata":            {meta, root, {name: "rootfs/a", kind: tar.TypeLink, link: "metadata.yaml"}},
		"metadata twice":                   {meta, root, meta},
		"metadata is a link":               {{name: "metadata.yaml", kind: tar.TypeSymlink, link: "/etc/shadow"}, root},
		"no metadata":                      {root},
		"no rootfs":                        {meta},
		"metadata without an architecture": {{name: "metadata.yaml", content: "properties: {}\n"}, root},
		"metadata of aliases": {{name: "metadata.yaml", content: "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
			"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nproperties: {f: [*e,*e,*e,*e,*e,*e,*e,*e,*e]}\n"}, root},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := archive.Clean(io.Discard, bytes.NewReader(packed(entries...)), archive.Check{})
			if err == nil {
				t.Fatal("taken")
			}
			t.Log(err)
		})
	}
	whole := packed(meta, root, entry{name: "rootfs/a", content: strings.Repeat("x", 1000)})
	for _, n := range []int{0, 1, 20, len(whole) / 2, len(whole) - 1} {
		if _, _, err := archive.Clean(io.Discard, bytes.NewReader(whole[:n]), archive.Check{}); err == nil {
			t.Errorf("%d of %d bytes were enough", n, len(whole))
		}
	}
	full := errors.New("full")
	if _, _, err := archive.Clean(io.Discard, bytes.NewReader(whole), archive.Check{Progress: func(archive.Counts) error { return full }}); !errors.Is(err, full) {
		t.Error(err)
	}
}

func TestWhatIsPackedComesBack(t *testing.T) {
	dir := t.TempDir()
	for path, content := range map[string]string{"metadata.yaml": metadata, "rootfs/etc/passwd": "root", "rootfs/home/a": "data", "templates/x.tpl": "t"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Symlink("/etc", dir+"/rootfs/link"), os.Link(dir+"/rootfs/home/a", dir+"/rootfs/home/b"), os.WriteFile(dir+"/backup.yaml", nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	total, err := archive.Count(dir, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done, err := archive.Pack(&out, dir, func(os.FileInfo) (int, int) { return 7, 8 }, func(archive.Counts) error { return nil })
	if err != nil || done != total || done.Bytes == 0 {
		t.Fatal(done, total, err)
	}
	var again bytes.Buffer
	if _, _, err := archive.Clean(&again, &out, archive.Check{}); err != nil {
		t.Fatal(err)
	}
	got := list(t, again.Bytes())
	if h := got["rootfs/home/b"]; h == nil || h.Typeflag != tar.TypeLink || h.Linkname != "rootfs/home/a" {
		t.Error(fmt.Sprintf("%+v", h))
	}
	if h := got["rootfs/link"]; h == nil || h.Linkname != "/etc" || h.Uid != 7 || h.Gid != 8 {
		t.Error(fmt.Sprintf("%+v", h))
	}
	if h := got["rootfs/etc/passwd"]; h == nil || h.Mode != 0o640 {
		t.Error(fmt.Sprintf("%+v", h))
	}
}

// Whatever is exported can be imported again: deep paths and long links too.
// What cannot be is refused before anything is written.
func TestWhatCannotComeBackIsNotPacked(t *testing.T) {
	dir, long := t.TempDir(), strings.Repeat("directory/", 378)
	nothing := func() error { return nil }
	for _, err := range []error{
		os.WriteFile(dir+"/metadata.yaml", []byte(metadata), 0o600),
		os.MkdirAll(filepath.Join(dir, "rootfs", long), 0o700),
		os.Symlink(strings.Repeat("y", 4095), dir+"/rootfs/link"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := archive.Count(dir, nothing); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := archive.Pack(&out, dir, func(os.FileInfo) (int, int) { return 0, 0 }, func(archive.Counts) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := archive.Clean(io.Discard, &out, archive.Check{}); err != nil {
		t.Error(err)
	}
	longer := filepath.Join(dir, "rootfs", long, strings.Repeat("z", 30))
	if err := os.WriteFile(longer, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Count(dir, nothing); err == nil || !strings.Contains(err.Error(), "move or remove it") {
		t.Error(err)
	}
	if _, _, err := archive.Clean(io.Discard, bytes.NewReader(packed(meta, root, entry{name: longer[len(dir)+1:]})), archive.Check{}); !errors.Is(err, archive.ErrUnsafe) {
		t.Error(err)
	}
}

func FuzzClean(f *testing.F) {
	f.Add(packed(meta, root, entry{name: "rootfs/a", content: "x"}))
	f.Add(packed(meta, root, entry{name: "rootfs/a", kind: tar.TypeSymlink, link: "/"}, entry{name: "rootfs/a/b", content: "x"}))
	f.Add([]byte{0xfd, '7', 'z', 'X', 'Z', 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		_, _, err := archive.Clean(&out, bytes.NewReader(data), archive.Check{Progress: func(c archive.Counts) error {
			if c.Bytes > 1<<20 {
				return io.ErrShortBuffer
			}
			return nil
		}})
		if err != nil {
			return
		}
		for name := range list(t, out.Bytes()) {
			if name != "metadata.yaml" && !strings.HasPrefix(name, "rootfs/") || strings.Contains("/"+name+"/", "/../") {
				t.Errorf("%q came through", name)
			}
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(metadata))
	f.Add([]byte("a: &a [*a]\narchitecture: x\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := archive.ParseMetadata(data)
		if err == nil && m.Architecture == "" {
			t.Error("no architecture")
		}
	})
}
