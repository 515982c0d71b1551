package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const help = `Does things

Usage:
  thing [flags]

Flags:
  -b, --bus string        the bus: *any* one
      --list              list the <words> of a_b
  -h, --help              help for thing
`

func TestPage(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("thing.conf", []byte("# First.\n#a = 1\n\n[part]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	source := "# NAME\n\nthing - it does things\n\n# OPTIONS\n\n@OPTIONS thing@\n\n# FILE\n\n@FILE thing.conf@\n"
	asked := ""
	page, err := render("thing.conf.5", time.Unix(1700000000, 0).UTC(), []byte(source), func(program string) (string, error) {
		asked = program
		return help, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if asked != "thing" {
		t.Errorf("the options of %q were asked for", asked)
	}
	for _, want := range []string{
		`.TH "thing.conf" "5" "Nov 2023" "Auberge" "Auberge"`, ".SH NAME\n", "\\fB-b\\fP, \\fB--bus\\fP \\fIstring\\fP\nthe bus: *any* one",
		"list the <words> of a_b", "#a = 1\n\n[part]\n",
	} {
		if !strings.Contains(strings.ReplaceAll(string(page), `\-`, "-"), want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	if strings.Contains(string(page), "help for thing") {
		t.Error("--help is no option of its own")
	}
}

// A page that would be wrong is not made.
func TestNoPage(t *testing.T) {
	dir := t.TempDir()
	for name, source := range map[string]string{
		"a.1.md": "@OPTIONS missing@\n", "b.1.md": "@FILE missing@\n", "c.md": "# NAME\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := write(dir, filepath.Join(dir, "man"), path); err == nil {
			t.Errorf("%s became a page", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "man")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pages were written: %v", err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := pageDate(); err == nil {
		t.Error("SOURCE_DATE_EPOCH=yesterday is a date")
	}
	if _, err := options("Usage: nothing"); err == nil {
		t.Error("a help without flags has options")
	}
}
