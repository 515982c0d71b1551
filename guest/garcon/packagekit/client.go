package packagekit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// queryTime is for a question.
	queryTime = 60 * time.Second
	// silence is how long PackageKit may say nothing while it works: large
	// packages unpack for minutes.
	silence = 30 * time.Minute
)

// A Client asks PackageKit.
type Client struct {
	dial    func(...dbus.ConnOption) (*dbus.Conn, error)
	silence time.Duration
}

// NewClient returns a client of the PackageKit on the system bus, which it does
// not look for until it is asked something.
func NewClient() *Client {
	return &Client{dial: dbus.SystemBusPrivate, silence: silence}
}

// query runs one transaction that changes nothing.
func (c *Client) query(ctx context.Context, method string, args ...any) (*transcript, error) {
	t, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if err := t.call(ctx, method, args...); err != nil {
		return nil, err
	}
	if err := t.wait(ctx, queryTime, nil); err != nil {
		if ctx.Err() != nil {
			t.cancel()
			return nil, fmt.Errorf("PackageKit has not answered %s within %s: %w", method, queryTime, err)
		}
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return &t.said, nil
}

// OfFile tells what a package file holds.
func (c *Client) OfFile(ctx context.Context, path string) (Details, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	if err := checkFile(path); err != nil {
		return Details{}, err
	}
	said, err := c.query(ctx, "GetDetailsLocal", []string{path})
	if err != nil {
		return Details{}, err
	}
	if len(said.details) == 0 {
		return Details{}, fmt.Errorf("PackageKit knows nothing of the file %s", path)
	}
	return said.details[0], nil
}

// names are those of Debian's packages, with some room for others'.
var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._:-]{0,254}$`)

// Named tells what the package of a name is. A version that can be installed
// goes before the installed one.
func (c *Client) Named(ctx context.Context, name string) (Details, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	if !names.MatchString(name) {
		return Details{}, fmt.Errorf("%q is no name of a package", clip(name, 200))
	}
	said, err := c.query(ctx, "Resolve", filterNewest|filterArch|filterNotSource, []string{name})
	if err != nil {
		return Details{}, err
	}
	id := choose(said.packages, name)
	if id == "" {
		return Details{}, fmt.Errorf("no package %s is known in this container; the lists of packages may be old (sudo apt update)", name)
	}
	said, err = c.query(ctx, "GetDetails", []string{id})
	if err != nil {
		return Details{}, err
	}
	for _, d := range said.details {
		if d.ID == id {
			return d, nil
		}
	}
	if len(said.details) == 0 {
		return Details{}, fmt.Errorf("PackageKit knows no details of %s", id)
	}
	return said.details[0], nil
}

func choose(packages []Package, name string) string {
	installed := ""
	for _, p := range packages {
		switch {
		case p.Name() != name:
		case !p.Installed:
			return p.ID
		case installed == "":
			installed = p.ID
		}
	}
	return installed
}

// OwnerOf returns the id of the installed package that a file belongs to, and
// nothing when it belongs to none.
func (c *Client) OwnerOf(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%q is no absolute path", path)
	}
	said, err := c.query(ctx, "SearchFiles", filterInstalled, []string{filepath.Clean(path)})
	if err != nil {
		return "", err
	}
	for _, p := range said.packages {
		if p.Installed {
			return p.ID, nil
		}
	}
	return "", nil
}

// checkFile finds out early what PackageKit says less clearly. Whether its
// daemon may read the file is not ours to know.
func checkFile(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%q is no absolute path in the container", clip(path, 200))
	}
	switch fi, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no file %s in the container", path)
	case err == nil && !fi.Mode().IsRegular():
		return fmt.Errorf("%s is no file", path)
	}
	return nil
}
