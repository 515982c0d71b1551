package core

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolverValidate(t *testing.T) {
	tests := map[string]struct {
		r  Resolver
		ok bool
	}{
		"nothing":                      {Resolver{}, true},
		"addresses":                    {Resolver{Nameservers: []string{"8.8.8.8", "2001:4860:4860::8888", "fe80::1%eth0"}}, true},
		"domains":                      {Resolver{SearchDomains: []string{"example.org", "linux.test.", "_tcp.local", "a", "."}}, true},
		"a name as a nameserver":       {Resolver{Nameservers: []string{"dns.google"}}, false},
		"an empty nameserver":          {Resolver{Nameservers: []string{""}}, false},
		"a newline in a nameserver":    {Resolver{Nameservers: []string{"8.8.8.8\nsearch evil"}}, false},
		"a newline in a zone":          {Resolver{Nameservers: []string{"fe80::1%a\nsearch evil"}}, false},
		"an option behind an address":  {Resolver{Nameservers: []string{"8.8.8.8 options"}}, false},
		"a newline in a domain":        {Resolver{SearchDomains: []string{"a\nnameserver 6.6.6.6"}}, false},
		"two domains in one":           {Resolver{SearchDomains: []string{"a b"}}, false},
		"an empty domain":              {Resolver{SearchDomains: []string{""}}, false},
		"an empty label":               {Resolver{SearchDomains: []string{"a..b"}}, false},
		"a comment":                    {Resolver{SearchDomains: []string{"#a"}}, false},
		"a label of 64 bytes":          {Resolver{SearchDomains: []string{strings.Repeat("a", 64)}}, false},
		"a domain of 254 bytes":        {Resolver{SearchDomains: []string{strings.Repeat("abc.", 63) + "ab"}}, false},
		"more nameservers than anyone": {Resolver{Nameservers: make([]string, 17)}, false},
		"more domains than anyone":     {Resolver{SearchDomains: make([]string, 65)}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.r.Validate(); (err == nil) != tt.ok {
				t.Errorf("Validate(%q): %v, want ok %v", tt.r, err, tt.ok)
			}
		})
	}
}

func TestResolverWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := Resolver{Nameservers: []string{"100.115.128.3", "::1"}, SearchDomains: []string{"a.test", "b.test"}}
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "# Written by maitred; changes are lost.\nnameserver 100.115.128.3\nnameserver ::1\nsearch a.test b.test\n"
	if string(data) != want {
		t.Errorf("it holds %q, want %q", data, want)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o644 {
		t.Errorf("its mode is %v: everybody must read it", info.Mode())
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("%d files, want one", len(files))
	}
}

func FuzzResolverIsOneWordALine(f *testing.F) {
	f.Add("8.8.8.8", "example.org")
	f.Add("fe80::1%x", "a b")
	f.Fuzz(func(t *testing.T, nameserver, domain string) {
		r := Resolver{Nameservers: []string{nameserver}, SearchDomains: []string{domain}}
		if r.Validate() != nil {
			return
		}
		if strings.ContainsAny(nameserver+domain, " \t\r\n#;\x00") {
			t.Errorf("accepted %q", r)
		}
	})
}

func TestLinkResolver(t *testing.T) {
	link := func(root string) string {
		target, _ := os.Readlink(root + "/etc/resolv.conf")
		return target
	}
	root := t.TempDir()
	if err := LinkResolver(root, false); err != nil || link(root) != ResolvPath {
		t.Errorf("where there is none: %q, %v", link(root), err)
	}
	if err := LinkResolver(root, false); err != nil {
		t.Errorf("where it is right: %v", err)
	}
	root = t.TempDir()
	os.Mkdir(root+"/etc", 0o755)
	os.WriteFile(root+"/etc/resolv.conf", []byte("nameserver 192.0.2.1\n"), 0o644)
	if err := LinkResolver(root, false); err == nil || link(root) != "" {
		t.Errorf("somebody's own file: %q, %v", link(root), err)
	}
	if err := LinkResolver(root, true); err != nil || link(root) != ResolvPath {
		t.Errorf("our file: %q, %v", link(root), err)
	}
}
