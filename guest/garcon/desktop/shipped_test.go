package desktop_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

// What the container's image has for opening links on the host.
func TestShippedFiles(t *testing.T) {
	files := "../../../packaging/image/container/files"
	dir := filepath.Join(files, "usr/share/applications")
	e, err := desktop.Find([]string{dir}, "garcon_host_browser")
	if err != nil {
		t.Fatal(err)
	}
	if e.Shown(filepath.Join(files, "usr/bin")) {
		t.Error("the host is told of its own browser")
	}
	lines, err := e.Commands([]string{"https://a.example/?a=b&c"})
	if diff := cmp.Diff([][]string{{"garcon-url-handler", "https://a.example/?a=b&c"}}, lines); err != nil || diff != "" {
		t.Error(err, diff)
	}
	bin, err := filepath.Abs(filepath.Join(files, "usr/bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desktop.LookPath(lines[0][0], bin); err != nil {
		t.Error(err)
	}
	f, err := os.Open(filepath.Join(files, "etc/xdg/mimeapps.list"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var defaults []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if mime, app, ok := strings.Cut(s.Text(), "="); ok {
			defaults = append(defaults, mime)
			if app != "garcon_host_browser.desktop" {
				t.Errorf("%s is opened by %s", mime, app)
			}
		}
	}
	if diff := cmp.Diff(e.MimeTypes, defaults); diff != "" {
		t.Error(diff)
	}
}
