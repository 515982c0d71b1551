package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/client/vmc"
)

// Every command has its page, with what its help says.
func TestPages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir, again := filepath.Join(t.TempDir(), "man"), t.TempDir()
	for _, d := range []string{dir, again} {
		if err := write(d); err != nil {
			t.Fatal(err)
		}
	}
	pages := 0
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		pages++
		for _, want := range []string{".TH ", "Nov 2023", ".SH NAME", strings.ReplaceAll(strings.Fields(c.Short)[0], "-", `\-`), ".SH OPTIONS"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", name, want)
			}
		}
		if c.Example != "" && !strings.Contains(string(text), ".SH EXAMPLE") {
			t.Errorf("%s has no example", name)
		}
		if same, err := os.ReadFile(filepath.Join(again, name)); err != nil || string(same) != string(text) {
			t.Errorf("%s is another one the second time: %v", name, err)
		}
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				visit(sub)
			}
		}
	}
	visit(vmc.Command())
	if pages < 20 {
		t.Errorf("only %d pages", pages)
	}
}
