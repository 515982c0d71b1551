package core

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/renameio/v2"
)

// ResolvPath is where the resolver's configuration is written. /etc/resolv.conf
// is a link to it.
const ResolvPath = "/run/resolv.conf"

// Limits on what one configuration may hold; the resolver itself reads far less.
const (
	maxNameservers   = 16
	maxSearchDomains = 64
)

// A Resolver is the content of resolv.conf(5).
type Resolver struct {
	Nameservers   []string // addresses
	SearchDomains []string
}

// Validate refuses whatever would not be one word of its line, and what the
// resolver could not use.
func (r Resolver) Validate() error {
	if len(r.Nameservers) > maxNameservers {
		return fmt.Errorf("%d nameservers are more than %d", len(r.Nameservers), maxNameservers)
	}
	if len(r.SearchDomains) > maxSearchDomains {
		return fmt.Errorf("%d search domains are more than %d", len(r.SearchDomains), maxSearchDomains)
	}
	for _, s := range r.Nameservers {
		a, err := netip.ParseAddr(s)
		if err != nil || !isWord(a.Zone()) {
			return fmt.Errorf("the nameserver %q is not an IP address", s)
		}
	}
	for _, d := range r.SearchDomains {
		if !isDomain(d) {
			return fmt.Errorf("the search domain %q is not a domain name", d)
		}
	}
	return nil
}

// isDomain accepts host name labels (RFC 1123) with underscores, and the root.
func isDomain(d string) bool {
	if d == "." {
		return true
	}
	d = strings.TrimSuffix(d, ".")
	if len(d) > 253 {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || !isWord(label) {
			return false
		}
	}
	return true
}

func isWord(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// Write replaces the file at path in one step.
func (r Resolver) Write(path string) error {
	var b strings.Builder
	b.WriteString("# Written by maitred; changes are lost.\n")
	for _, s := range r.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.SearchDomains) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.SearchDomains, " "))
	}
	if err := renameio.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("cannot write the resolver's configuration: %w", err)
	}
	return nil
}

// LinkResolver makes root/etc/resolv.conf a link to ResolvPath; an empty root is
// the machine's own. A file that is there is replaced only on a root file system that
// is ours to change.
func LinkResolver(root string, ours bool) error {
	path := root + "/etc/resolv.conf"
	if have, err := os.Readlink(path); err == nil && have == ResolvPath {
		return nil
	}
	if _, err := os.Lstat(path); err == nil && !ours {
		return fmt.Errorf("%s is left as it is: what the host says of name servers goes to %s only", path, ResolvPath)
	}
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		return err
	}
	return renameio.Symlink(ResolvPath, path)
}
