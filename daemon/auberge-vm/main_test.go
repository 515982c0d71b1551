package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Daemons pass every command the same flags. An answer comes where there is
// no KVM too, and where QEMU is none.
func TestProbe(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetArgs([]string{"probe", "--qemu", "/bin/true", "--vsock-backend", "/bin/true", "--", kernel})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	word, why, _ := strings.Cut(out.String(), "\n")
	if word != "tcg" || !strings.Contains(why, "KVM") {
		t.Errorf("it says %q because %q", word, why)
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, args := range [][]string{{"probe"}, {"probe", "a", "b"}, {"run", "x"}, {"run", "--peer-uid", "-1"}, {"dance"}} {
		c := command()
		c.SetArgs(args)
		if err := c.Execute(); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

// What only the service manager starts says so, before it touches anything.
func TestUnitWithoutServiceManager(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "")
	os.Unsetenv("RUNTIME_DIRECTORY")
	c := command()
	c.SetArgs([]string{"unit", "--peer-user", "0"})
	if err := c.Execute(); err == nil || !strings.Contains(err.Error(), "service manager") {
		t.Errorf("without a directory: %v", err)
	}
	c = command()
	c.SetArgs([]string{"unit", "--peer-user", "nobody-of-that-name"})
	if err := c.Execute(); err == nil || !strings.Contains(err.Error(), "--peer-user") {
		t.Errorf("for a user that is none: %v", err)
	}
}
