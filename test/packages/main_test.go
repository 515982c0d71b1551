package packages

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// source is the repository, packages the directory that make packages filled.
var source, packages string

func TestMain(m *testing.M) {
	var err error
	if source, err = filepath.Abs("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	packages = filepath.Join(source, "bin/packages")
	os.Exit(m.Run())
}

// find returns the one package that a pattern names.
func find(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(packages, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d packages are %s, not one: make packages makes them (%v, %v)", len(found), pattern, found, err)
	}
	return found[0]
}

// run runs a command that must succeed and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, exec.Command(name, args...))
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a command with its output and errors together.
func try(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}
