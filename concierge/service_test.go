package concierge

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"a relative state directory":   {func(c *Config) { c.StateDir = "state" }, "absolute"},
		"a relative runtime directory": {func(c *Config) { c.RuntimeDir = "./run" }, "absolute"},
		"a long runtime directory":     {func(c *Config) { c.RuntimeDir = "/" + strings.Repeat("x", 60) }, "60 bytes"},
		"a small pool":                 {func(c *Config) { c.Pool = netip.MustParsePrefix("10.0.0.0/30") }, "/29"},
		"no pool":                      {func(c *Config) { c.Pool = netip.Prefix{} }, "address pool"},
		"a file in place of the state": {func(c *Config) { c.StateDir = "/dev/null/x" }, "state directory"},
	} {
		b := newBed(t)
		test.change(&b.cfg)
		if s, err := New(t.Context(), b.cfg); err == nil {
			s.Close()
			t.Errorf("%s was accepted", name)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// Who may look where: the VMs' user must get through to its directories, and
// nobody needs to see more. A directory that is there keeps its rights.
func TestDirectoryModes(t *testing.T) {
	mode := func(path string) os.FileMode {
		t.Helper()
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode() &^ os.ModeDir
	}
	b := newBed(t)
	s := b.serve()
	for path, want := range map[string]os.FileMode{
		b.cfg.RuntimeDir: 0o711, s.vmsDir(): 0o711, s.recordsDir(): 0o700, s.disksDir(): 0o700,
	} {
		if got := mode(path); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
	for before, want := range map[os.FileMode]os.FileMode{
		0o755: 0o755, 0o700: 0o711, 0o750: 0o751, 0o777 | os.ModeSticky: 0o777 | os.ModeSticky,
	} {
		b := newBed(t)
		if err := os.Mkdir(b.cfg.RuntimeDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.cfg.RuntimeDir, before); err != nil {
			t.Fatal(err)
		}
		b.serve()
		if got := mode(b.cfg.RuntimeDir); got != want {
			t.Errorf("a runtime directory of mode %v has %v, want %v", before, got, want)
		}
	}
}

// A VM's directory is its user's and ours: without a user of their own for
// VMs, that is one and the same, and no group has a part in it.
func TestVMDirectoryMode(t *testing.T) {
	for group, want := range map[int]os.FileMode{-1: 0o700, os.Getegid(): 0o770} {
		b := newBed(t)
		b.cfg.VMGroup = group
		s := b.serve()
		v := &vm{dir: filepath.Join(s.vmsDir(), "abc")}
		if err := s.makeDir(v); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(v.dir)
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("with group %d: mode %v, %v; want %v", group, fi.Mode().Perm(), err, want)
		}
		if err := s.makeDir(v); err == nil {
			t.Error("a directory that is there was taken")
		}
		os.Remove(v.dir)
	}
}
