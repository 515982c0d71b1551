// Man makes manual pages of Markdown, one a file, named PAGE.SECTION.md. A line
// "@OPTIONS program@" in one becomes that program's options, as its --help has
// them, and "@FILE path@" a file of the source: so a page cannot fall behind.
// `make man` runs it, in the source's directory.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: man PROGRAMS DIRECTORY PAGE.md...")
		os.Exit(2)
	}
	for _, source := range os.Args[3:] {
		if err := write(os.Args[1], os.Args[2], source); err != nil {
			fmt.Fprintf(os.Stderr, "man: %s: %v\n", source, err)
			os.Exit(1)
		}
	}
}

// write makes the page of one source, with the programs of a directory.
func write(programs, dir, source string) error {
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	date, err := pageDate()
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(filepath.Base(source), ".md")
	page, err := render(name, date, text, func(program string) (string, error) {
		out, err := exec.Command(filepath.Join(programs, program), "--help").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s --help: %w: %s", program, err, out)
		}
		return string(out), nil
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), page, 0o644)
}

// pageDate is SOURCE_DATE_EPOCH where that is set, so that the same source
// gives the same page.
func pageDate() (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Now(), nil
	}
	s, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(s, 0).UTC(), nil
}

var (
	optionsLine = regexp.MustCompile(`(?m)^@OPTIONS (\S+)@$`)
	fileLine    = regexp.MustCompile(`(?m)^@FILE (\S+)@$`)
	// Markdown shows lines with four spaces before them as they are.
	verbatim = regexp.MustCompile(`(?m)^`)
)

func render(name string, date time.Time, text []byte, help func(program string) (string, error)) ([]byte, error) {
	title, section, ok := cutLast(name)
	if !ok {
		return nil, fmt.Errorf("%q names no section", name)
	}
	var failed error
	text = optionsLine.ReplaceAllFunc(text, func(line []byte) []byte {
		program := string(optionsLine.FindSubmatch(line)[1])
		out, err := help(program)
		if err == nil {
			out, err = options(out)
		}
		if err != nil {
			failed = fmt.Errorf("the options of %s: %w", program, err)
		}
		return []byte(out)
	})
	text = fileLine.ReplaceAllFunc(text, func(line []byte) []byte {
		out, err := os.ReadFile(string(fileLine.FindSubmatch(line)[1]))
		if err != nil {
			failed = err
		}
		return verbatim.ReplaceAll(out, []byte("    "))
	})
	if failed != nil {
		return nil, failed
	}
	head := fmt.Sprintf("%% %q %q %q %q %q\n\n", title, section, date.Format("Jan 2006"), "Auberge", "Auberge")
	return md2man.Render(append([]byte(head), bytes.TrimLeft(text, "\n")...)), nil
}

var optionLine = regexp.MustCompile(`^ {2,}(?:(-\w), )?(--[\w-]+)(?: (\S+))? {2,}(\S.*)$`)

// options makes a definition list of the flags in a program's help.
func options(help string) (string, error) {
	var b strings.Builder
	for line := range strings.Lines(help) {
		m := optionLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || m[2] == "--help" {
			continue
		}
		b.WriteString("\n**")
		if m[1] != "" {
			b.WriteString(m[1] + "**, **")
		}
		b.WriteString(m[2] + "**")
		if m[3] != "" {
			b.WriteString(" *" + m[3] + "*")
		}
		b.WriteString("\n:   " + escape(m[4]) + "\n")
	}
	if b.Len() == 0 {
		return "", fmt.Errorf("none found in its help")
	}
	return b.String(), nil
}

// escape keeps the words of a program from being read as Markdown.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "<", `\<`, "[", `\[`, "`", "\\`").Replace(s)
}

// cutLast parts PAGE.SECTION, where the page may have dots of its own.
func cutLast(name string) (title, section string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 1 || i == len(name)-1 {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}
