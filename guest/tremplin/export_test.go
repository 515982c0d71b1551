package tremplin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file is there when it is whole: until then, and when nobody finishes it,
// there is nothing that stands in the next export's way.
func TestAnExportIsThereWhenItIsWhole(t *testing.T) {
	dir := t.TempDir()
	s := &Server{cfg: Config{TransferDir: filepath.Join(dir, "transfer")}, log: quiet()}
	const name = "penguin.tar.gz"
	full := filepath.Join(s.cfg.TransferDir, name)
	for range 2 { // the first is abandoned, or its process killed
		out, err := s.sink(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("half")); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(full); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a file that is not whole has its name:", err)
		}
		out.abandon()
	}
	out, err := s.sink(full)
	if err != nil {
		t.Fatal(err)
	}
	out.Write([]byte("whole"))
	if err := out.finish(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(full); err != nil || string(data) != "whole" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := s.sink(name); !errors.Is(err, fs.ErrExist) {
		t.Error("an export would replace a file:", err)
	}
	// Somebody else's file came meanwhile.
	out, err = s.sink("other")
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(s.cfg.TransferDir, "other"), []byte("theirs"), 0o600)
	if err := out.finish(); !errors.Is(err, fs.ErrExist) {
		t.Error("an export replaced a file:", err)
	}
	out.abandon()
	os.Symlink(dir, filepath.Join(s.cfg.TransferDir, "out"))
	os.WriteFile(filepath.Join(s.cfg.TransferDir, "x"), nil, 0o600)
	for _, bad := range []string{"../x", "/etc/x", "out/x", "..", "x/..", "", "no/x", "no/../y", "./y", "a//y", "y/", ".", "/"} {
		if out, err := s.sink(bad); err == nil {
			t.Errorf("an export to %q was taken", bad)
			out.abandon()
		}
		if in, err := s.origin(strings.ReplaceAll(bad, "y", "x")); err == nil {
			t.Errorf("an import from %q was taken", bad)
			in.close()
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("an export left its directory")
	}
}
