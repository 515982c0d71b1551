package host

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Host is this machine, as far as guests care. The zero value reads the
// usual files.
type Host struct {
	// Localtime is the link to the zone file; empty means /etc/localtime.
	Localtime string
	// Resolver is the resolver's configuration; empty means /etc/resolv.conf,
	// or what systemd-resolved really asks where that names only itself.
	Resolver string
	// Passwd is the file of accounts; empty means /etc/passwd, and then
	// whatever else the machine's name service knows.
	Passwd string
}

// DNS is a resolver's configuration.
type DNS struct {
	NameServers, SearchDomains []string
}

// Equal says whether two configurations are the same.
func (d DNS) Equal(o DNS) bool {
	return slices.Equal(d.NameServers, o.NameServers) && slices.Equal(d.SearchDomains, o.SearchDomains)
}

const (
	defaultLocaltime = "/etc/localtime"
	defaultResolver  = "/etc/resolv.conf"
	// resolvedUpstream is what systemd-resolved asks; /etc/resolv.conf then
	// often names its own stub, which no guest can reach.
	resolvedUpstream = "/run/systemd/resolve/resolv.conf"
	resolvedStub     = "127.0.0.53"
	zoneDir          = "/zoneinfo/"
	maxFile          = 64 << 10
)

func (h Host) localtime() string {
	if h.Localtime != "" {
		return h.Localtime
	}
	return defaultLocaltime
}

func (h Host) resolver() string {
	if h.Resolver != "" {
		return h.Resolver
	}
	return defaultResolver
}

// Timezone is the name of the machine's time zone, such as Europe/Paris. A
// machine without /etc/localtime keeps UTC; the error says that a zone file
// has no name.
func (h Host) Timezone() (string, error) {
	link, err := os.Readlink(h.localtime())
	if os.IsNotExist(err) {
		return "UTC", nil
	}
	if err == nil {
		if _, name, ok := strings.Cut(link, zoneDir); ok && name != "" {
			return name, nil
		}
	}
	// Older tools copy the zone file, and write its name beside it.
	b, ferr := readSome(filepath.Join(filepath.Dir(h.localtime()), "timezone"))
	if name := strings.TrimSpace(string(b)); ferr == nil && name != "" {
		return name, nil
	}
	return "", fmt.Errorf("%s is no link to a zone file and there is no name beside it: set the zone with timedatectl", h.localtime())
}

// DNS is what the machine asks for names.
func (h Host) DNS() (DNS, error) {
	d, err := readResolver(h.resolver())
	if err == nil && h.Resolver == "" && len(d.NameServers) == 1 && d.NameServers[0] == resolvedStub {
		if real, err := readResolver(resolvedUpstream); err == nil {
			return real, nil
		}
	}
	return d, err
}

// readResolver reads what matters of a resolv.conf(5). The last of "search"
// and "domain" counts.
func readResolver(path string) (DNS, error) {
	b, err := readSome(path)
	if os.IsNotExist(err) {
		return DNS{}, nil
	}
	if err != nil {
		return DNS{}, fmt.Errorf("the host's resolver: %w", err)
	}
	var d DNS
	sc := bufio.NewScanner(strings.NewReader(strings.ToValidUTF8(string(b), "")))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.NameServers = append(d.NameServers, f[1])
		case "search", "domain":
			d.SearchDomains = f[1:]
		}
	}
	return d, nil
}

// readSome reads a small file and the beginning of a large one.
func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}
