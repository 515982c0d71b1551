package desktop

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// maxID bounds an id in bytes.
const maxID = 1024

func validID(id string) bool {
	return id != "" && len(id) <= maxID && utf8.ValidString(id)
}

// FileURI is the URI of an absolute path.
func FileURI(path string) string {
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// A target is a file or URL that an application is to open, both ways.
type target struct{ path, uri string }

// parseTarget takes an absolute path or a URL.
func parseTarget(text string) (target, error) {
	if strings.ContainsRune(text, 0) {
		return target{}, fmt.Errorf("the file %q has a NUL byte in its name", text)
	}
	if filepath.IsAbs(text) {
		return target{path: text, uri: FileURI(text)}, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" {
		return target{}, fmt.Errorf("the file %q is neither an absolute path nor a URL", text)
	}
	if u.Scheme != "file" {
		return target{uri: text}, nil
	}
	if u.Host != "" && u.Host != "localhost" || !filepath.IsAbs(u.Path) || strings.ContainsRune(u.Path, 0) {
		return target{}, fmt.Errorf("the URL %q names no file of this container", text)
	}
	return target{path: u.Path, uri: text}, nil
}
