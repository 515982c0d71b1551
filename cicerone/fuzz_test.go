package cicerone_test

import (
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/auberge-vm/auberge/cicerone"
)

// FuzzURL: what reaches the desktop is a URL of a scheme that is allowed, and
// never one of the host itself.
func FuzzURL(f *testing.F) {
	for _, s := range []string{"https://example.org/a?b", "http://localhost:8080", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "HTTP://LOCALHOST.", "file:///..", "mailto:a@b",
		"http://user@localhost@127.0.0.1/", "http://127.1/", "--help", "http://%6cocalhost/", "http:localhost"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out, err := cicerone.HostURL(in, "100.115.92.3")
		if err != nil {
			return
		}
		u, err := url.Parse(out)
		if err != nil {
			t.Fatalf("%q becomes %q: %v", in, out, err)
		}
		if u.Scheme == "" || u.Scheme == "file" || u.Scheme == "javascript" || strings.HasPrefix(out, "-") {
			t.Errorf("%q becomes %q", in, out)
		}
		if strings.HasPrefix(u.Scheme, "http") && strings.ContainsFunc(u.Hostname(), func(r rune) bool { return r > unicode.MaxASCII }) {
			t.Errorf("%q becomes %q, whose host may be another when it is looked up", in, out)
		}
		if h := strings.ToLower(u.Hostname()); h == "localhost" || h == "127.0.0.1" || h == "::1" {
			t.Errorf("%q becomes %q", in, out)
		}
	})
}
