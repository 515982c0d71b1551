package vmm_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/vmm"
)

func TestExitRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := vmm.ReadExit(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a record: %v", err)
	}
	want := vmm.Exit{Reason: vmm.ExitGuest, Message: "ü\n", Time: time.Unix(1763745600, 5).UTC(), Console: []byte("\x00\xff\x1b")}
	if err := vmm.WriteExit(nil, dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := vmm.ReadExit(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	fi, err := os.Stat(filepath.Join(dir, vmm.ExitFile))
	if err != nil || fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v, %v: the console is nobody else's", fi.Mode(), err)
	}
	// The largest record that a supervisor writes can be read.
	want.Console = make([]byte, vmm.ConsoleSize)
	if err := vmm.WriteExit(nil, dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := vmm.ReadExit(dir); err != nil || len(got.Console) != vmm.ConsoleSize {
		t.Errorf("%d bytes of console, %v", len(got.Console), err)
	}
}

// The directory is the VMs' user's too, who may put anything where the record
// belongs. Reading it must neither hang nor lead elsewhere.
func TestExitRecordThatIsNone(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(`{"reason":"guest","message":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"a FIFO":           func(p string) error { return syscall.Mkfifo(p, 0o666) },
		"a directory":      func(p string) error { return os.Mkdir(p, 0o777) },
		"a link":           func(p string) error { return os.Symlink(secret, p) },
		"a link to a FIFO": func(p string) error { syscall.Mkfifo(p+"x", 0o666); return os.Symlink(p+"x", p) },
		"an endless file":  func(p string) error { return os.Symlink("/dev/zero", p) },
		"a large file": func(p string) error {
			return os.WriteFile(p, []byte(`{"message":"large"}`+strings.Repeat(" ", vmm.MaxExit)), 0o666)
		},
		"no JSON": func(p string) error { return os.WriteFile(p, []byte("hello"), 0o666) },
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o666) },
	} {
		dir := t.TempDir()
		if err := plant(filepath.Join(dir, vmm.ExitFile)); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			e, err := vmm.ReadExit(dir)
			if err == nil {
				err = errors.New("read " + e.Message)
			} else {
				err = nil
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: it hangs", name)
		}
	}
}
