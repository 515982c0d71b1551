package cicerone

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// schemes are those that lead away from the container. What a program of the
// host would read from the host's own files, or run, is not among them.
var schemes = map[string]bool{"http": true, "https": true, "ftp": true, "mailto": true, "tel": true, "sms": true,
	"xmpp": true, "irc": true, "ircs": true, "magnet": true, "webcal": true, "geo": true}

// linked are those with a host. Browsers find one in what is no such URL for
// others, and it may be their own.
var linked = map[string]bool{"http": true, "https": true, "ftp": true, "irc": true, "ircs": true, "webcal": true}

// hostURL is a container's URL in the host's terms. The container itself is
// its address there: no port of a container is the host's.
func hostURL(text, address string) (string, error) {
	if len(text) > maxURL {
		return "", fmt.Errorf("the URL is longer than %d bytes", maxURL)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return "", errors.New("the URL has spaces or control characters")
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", errors.New("this is no URL")
	}
	u.Scheme = strings.ToLower(u.Scheme)
	if linked[u.Scheme] {
		if err := plainHost(u); err != nil {
			return "", err
		}
	}
	switch {
	case u.Scheme == "file" && strings.Contains(u.Path, ".."):
		return "", errors.New("a file's URL must not contain \"..\"")
	case u.Scheme == "file":
		return "", errors.New("the host has no directory in common with the container, and cannot open its files")
	case !schemes[u.Scheme]:
		return "", errors.New("URLs of this scheme are not opened for containers")
	case linked[u.Scheme] && (u.Host == "" || strings.Contains(text, "\\")):
		return "", errors.New("the URL names no host, or not as a URL does")
	case oddAddress(u.Hostname()):
		return "", errors.New("the URL's host is a number that programs read differently")
	case !isLocal(u.Hostname()):
		return u.String(), nil
	case address == "":
		return "", errors.New("the container has no address at which the host could reach it")
	}
	if port := u.Port(); port != "" {
		address = net.JoinHostPort(address, port)
	}
	u.Host = address
	return u.String(), nil
}

// plainHost writes a URL's host as those who look it up do: there are letters,
// digits and dots in other scripts that become plain ones, also those of
// localhost and of addresses.
func plainHost(u *url.URL) error {
	host := u.Hostname()
	if strings.IndexFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return nil
	}
	plain, err := idna.Lookup.ToASCII(host)
	if err != nil {
		return errors.New("the URL's host is no name")
	}
	if port := u.Port(); port != "" {
		plain += ":" + port
	}
	u.Host = plain
	return nil
}

// local are names of the machine itself: those that programs know, and those
// that distributions write into /etc/hosts.
var local = map[string]bool{"localhost": true, "localhost.localdomain": true, "localhost4": true, "localhost6": true,
	"localhost4.localdomain4": true, "localhost6.localdomain6": true, "ip6-localhost": true, "ip6-loopback": true}

// isLocal says whether a host's name means the machine that uses it.
func isLocal(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if local[host] || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && (a.Unmap().IsLoopback() || a.Unmap().IsUnspecified())
}

// oddAddress says whether a host is an address in a form that only some
// programs know, such as 127.1.
func oddAddress(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	return last != "" && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "")
}
