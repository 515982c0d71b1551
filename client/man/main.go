// Man writes the manual pages of vmc from its commands, one page for each,
// into a directory. `make man` runs it.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/auberge-vm/auberge/client/vmc"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man: write the manual pages:", err)
		os.Exit(1)
	}
}

// write makes the pages. Their date is SOURCE_DATE_EPOCH where that is set, so
// that the same source gives the same pages.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := vmc.Command()
	withoutTag(root)
	return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Auberge", Manual: "Auberge"}, dir)
}

// withoutTag leaves out who generated a page, and on which day.
func withoutTag(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		withoutTag(sub)
	}
}
