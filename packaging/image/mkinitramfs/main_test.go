package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/packaging/image/internal/newc"
)

func TestArchiveHoldsFilesDirectoriesAndConsole(t *testing.T) {
	dir := t.TempDir()
	modules := filepath.Join(dir, "m")
	if err := os.Mkdir(modules, 0o700); err != nil {
		t.Fatal(err)
	}
	// Sizes around the padding to 4 bytes.
	for name, content := range map[string]string{"order": "001-a.ko\n", "001-a.ko": "12345678", "002-b.ko": ""} {
		if err := os.WriteFile(filepath.Join(modules, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The least that is a static program: a header and nothing to load. (The
	// test itself is none under -race.)
	program := filepath.Join(dir, "program")
	header := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	header[16], header[18], header[20], header[52] = 2, 62, 1, 64 // EXEC, x86-64, version, header size
	if err := os.WriteFile(program, header, 0o700); err != nil {
		t.Fatal(err)
	}

	first, second := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	for _, output := range []string{first, second} {
		if err := run(output, 1234, []string{"init=" + program, "modules=" + modules}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(second); err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same input gave other bytes (%v)", err)
	}

	members, err := newc.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint32{}
	for _, m := range members {
		got[m.Name] = m.Mode
		if m.Mtime != 1234 || m.UID != 0 || m.GID != 0 {
			t.Errorf("%s: time %d, owner %d:%d, want 1234 and root", m.Name, m.Mtime, m.UID, m.GID)
		}
	}
	want := map[string]uint32{
		"dev": 0o40755, "dev/console": 0o20600, "proc": 0o40755, "sys": 0o40755, "run": 0o40755,
		"init": 0o100755, "modules": 0o40755, "modules/order": 0o100644,
		"modules/001-a.ko": 0o100644, "modules/002-b.ko": 0o100644,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	for _, m := range members {
		switch m.Name {
		case "dev/console":
			if m.Major != 5 || m.Minor != 1 {
				t.Errorf("the console is device %d:%d, want 5:1", m.Major, m.Minor)
			}
		case "modules/001-a.ko":
			if string(m.Data) != "12345678" {
				t.Errorf("%s holds %q", m.Name, m.Data)
			}
		}
	}
}

func TestRefusesWhatCannotWork(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ arg, want string }{
		"a dynamically linked init": {"init=/bin/sh", "dynamically linked"},
		"a script":                  {"init=" + script, "not a program"},
		"a missing file":            {"init=/nonexistent", "no such file"},
		"a device":                  {"init=/dev/null", "neither a file nor a directory"},
		"no path":                   {"init", "not NAME=PATH"},
		"a name outside":            {"../init=/bin/sh", "not NAME=PATH"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(filepath.Join(t.TempDir(), "out"), 0, []string{test.arg})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}
