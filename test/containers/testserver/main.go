// Testserver is put into a VM by the tests of containers: the guest has no way
// out, so that what it downloads from is inside. It serves a directory, at
// several speeds:
//
//	/fast/PATH   as fast as it goes
//	/slow/PATH   files longer than 1 MiB at --rate KiB a second
//	/stall/PATH  files longer than 1 MiB up to the first MiB, and then nothing
//	             until the client leaves
//	/cut/PATH    files longer than 1 MiB up to the first MiB, and then the end
//	             of the connection
//
// With --image it makes a simplestreams server of a container image first:
// DIR/streams/v1 and the two files of the image, under the alias --alias. Its
// metadata are written anew: Incus downloads nothing that it has already.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/ulikunitz/xz"
)

// small is what is served at full speed everywhere: indexes, not images.
const small = 1 << 20

func main() {
	listen := flag.String("listen", ":8000", "address")
	dir := flag.String("dir", ".", "the directory that is served")
	image := flag.String("image", "", "directory with metadata.tar.xz and rootfs.squashfs")
	alias := flag.String("alias", "debian/13", "alias of the image")
	rate := flag.Int("rate", 4096, "KiB a second below /slow")
	spoil := flag.Bool("spoil", false, "announce another checksum than the image has")
	flag.Parse()
	if *image != "" {
		if err := describe(*dir, *image, *alias, *spoil); err != nil {
			log.Fatal(err)
		}
	}
	files := http.Dir(*dir)
	http.Handle("/fast/", http.StripPrefix("/fast/", http.FileServer(files)))
	http.Handle("/slow/", http.StripPrefix("/slow/", slow(files, *rate)))
	http.Handle("/stall/", http.StripPrefix("/stall/", begin(files, func(r *http.Request) { <-r.Context().Done() })))
	http.Handle("/cut/", http.StripPrefix("/cut/", begin(files, func(*http.Request) { panic(http.ErrAbortHandler) })))
	log.Fatal(http.ListenAndServe(*listen, nil))
}

// open opens a file to be served; with an error it has answered.
func open(files http.FileSystem, w http.ResponseWriter, r *http.Request) (http.File, int64, bool) {
	f, err := files.Open("/" + strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		http.NotFound(w, r)
		return nil, 0, false
	}
	st, err := f.Stat()
	if err != nil || st.IsDir() {
		f.Close()
		http.NotFound(w, r)
		return nil, 0, false
	}
	w.Header().Set("Content-Length", fmt.Sprint(st.Size()))
	return f, st.Size(), true
}

func slow(files http.FileSystem, rate int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, size, ok := open(files, w, r)
		if !ok {
			return
		}
		defer f.Close()
		if r.Method == http.MethodHead {
			return
		}
		if size <= small {
			io.Copy(w, f)
			return
		}
		const parts = 10 // of a second
		tick := time.NewTicker(time.Second / parts)
		defer tick.Stop()
		for {
			if _, err := io.CopyN(w, f, int64(rate)<<10/parts); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	})
}

// begin serves no more than the beginning of large files.
func begin(files http.FileSystem, then func(*http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, size, ok := open(files, w, r)
		if !ok {
			return
		}
		defer f.Close()
		if r.Method == http.MethodHead {
			return
		}
		io.CopyN(w, f, small)
		if size > small {
			http.NewResponseController(w).Flush()
			then(r)
		}
	})
}

type file struct {
	Type           string `json:"ftype"`
	Path           string `json:"path"`
	Size           int64  `json:"size"`
	SHA256         string `json:"sha256"`
	CombinedSquash string `json:"combined_squashfs_sha256,omitempty"`
}

// describe writes the index and the products of a simplestreams server.
func describe(dir, image, alias string, spoil bool) error {
	all := sha256.New()
	var items [2]file
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return err
	}
	for i, name := range []string{"metadata.tar.xz", "rootfs.squashfs"} {
		data, err := os.ReadFile(filepath.Join(image, name))
		if err != nil {
			return err
		}
		to := filepath.Join("images", name)
		os.Remove(filepath.Join(dir, to))
		if i == 0 {
			if data, err = own(data); err == nil {
				err = os.WriteFile(filepath.Join(dir, to), data, 0o644)
			}
		} else {
			err = os.Symlink(filepath.Join(image, name), filepath.Join(dir, to))
		}
		if err != nil {
			return err
		}
		all.Write(data)
		sum := sha256.Sum256(data)
		items[i] = file{Path: to, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	}
	combined := all.Sum(nil)
	if spoil {
		combined[0] ^= 1
	}
	items[0].Type, items[1].Type = "incus.tar.xz", "squashfs"
	items[0].CombinedSquash = hex.EncodeToString(combined)
	const product = "debian:trixie:default:amd64"
	index := map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{
		"datatype": "image-downloads", "path": "streams/v1/images.json", "format": "products:1.0", "products": []string{product},
	}}}
	products := map[string]any{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0",
		"products": map[string]any{product: map[string]any{
			"aliases": alias, "arch": "amd64", "os": "Debian", "release": "trixie", "release_title": "13", "variant": "default",
			"versions": map[string]any{"20260101_00:00": map[string]any{"items": map[string]any{
				"incus.tar.xz": items[0], "rootfs.squashfs": items[1],
			}}},
		}}}
	streams := filepath.Join(dir, "streams/v1")
	if err := os.MkdirAll(streams, 0o755); err != nil {
		return err
	}
	for name, what := range map[string]any{"index.json": index, "images.json": products} {
		text, err := json.Marshal(what)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(streams, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// own makes an image's metadata this server's.
func own(metadata []byte) ([]byte, error) {
	in, err := xz.NewReader(bytes.NewReader(metadata))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z, err := xz.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	from, to := tar.NewReader(in), tar.NewWriter(z)
	for {
		h, err := from.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(from)
		if err != nil {
			return nil, err
		}
		if path.Base(h.Name) == "metadata.yaml" {
			data = append(data, "\n# from the tests' server\n"...)
			h.Size = int64(len(data))
		}
		if err := to.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := to.Write(data); err != nil {
			return nil, err
		}
	}
	if err := to.Close(); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}
