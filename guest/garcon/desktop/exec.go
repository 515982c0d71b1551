package desktop

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	maxArgs     = 4096 // of a command line
	maxCommands = 32   // that one launch may become
)

// errQuote says that an Exec ends inside a quotation.
var errQuote = errors.New("Exec has a quotation without its end")

// words splits an Exec into arguments. Double quotes hold an argument
// together, with a backslash before ", `, $ and \ ; single quotes and a
// backslash outside of quotes, which the specification does not have and GLib
// takes, work as in a shell. Nothing is ever expanded.
func words(line string) ([]string, error) {
	var list []string
	var word strings.Builder
	var quote byte
	inWord := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				word.WriteByte(c)
			}
		case c == '\\':
			if i+1 == len(line) {
				return nil, errors.New("Exec ends with a backslash")
			}
			i++
			if quote == '"' && !strings.ContainsRune("\"`$\\", rune(line[i])) {
				word.WriteByte('\\')
			}
			word.WriteByte(line[i])
			inWord = true
		case quote == '"':
			if c == '"' {
				quote = 0
			} else {
				word.WriteByte(c)
			}
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				list = append(list, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
		if len(list) > maxArgs {
			return nil, fmt.Errorf("Exec has more than %d arguments", maxArgs)
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	if inWord {
		list = append(list, word.String())
	}
	return list, nil
}

// Commands are the command lines that open files (absolute paths or URLs) with
// the application: one, or one for each file where Exec takes a single one.
// An application that says nothing of files gets them at its end, as GLib has
// it.
func (e *Entry) Commands(files []string) ([][]string, error) {
	template, err := words(e.Exec)
	if err != nil {
		return nil, err
	}
	if len(template) == 0 {
		return nil, errors.New("Exec is empty")
	}
	if len(files) > maxArgs {
		return nil, fmt.Errorf("%d files at once, where %d are possible", len(files), maxArgs)
	}
	targets := make([]target, len(files))
	for i, f := range files {
		if targets[i], err = parseTarget(f); err != nil {
			return nil, err
		}
	}
	single, several := takes(template)
	if !single && !several && len(targets) > 0 {
		template = append(template, "%f")
		single = true
	}
	if several || len(targets) <= 1 {
		line, err := e.command(template, targets)
		if err != nil {
			return nil, err
		}
		return [][]string{line}, nil
	}
	if len(targets) > maxCommands {
		return nil, fmt.Errorf("the application opens one file at a time, and %d at once are too many", len(targets))
	}
	var lines [][]string
	for i := range targets {
		line, err := e.command(template, targets[i:i+1])
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// takes tells whether a template has a place for one file, for several.
func takes(template []string) (single, several bool) {
	for _, w := range template {
		if w == "%F" || w == "%U" {
			several = true
			continue
		}
		for i := 0; i+1 < len(w); i++ {
			if w[i] == '%' {
				i++
				single = single || strings.IndexByte("fuFU", w[i]) >= 0
			}
		}
	}
	return single, several
}

// command fills in a template.
func (e *Entry) command(template []string, files []target) ([]string, error) {
	var line []string
	for _, w := range template {
		switch w {
		case "%F", "%U":
			for _, f := range files {
				arg, err := f.as(w[1])
				if err != nil {
					return nil, err
				}
				line = append(line, arg)
			}
			continue
		case "%i":
			if e.Icon != "" {
				line = append(line, "--icon", e.Icon)
			}
			continue
		}
		arg, filled, err := e.fill(w, files)
		if err != nil {
			return nil, err
		}
		// What was nothing but codes that stand for nothing is no argument.
		if arg != "" || !filled {
			line = append(line, arg)
		}
	}
	if len(line) == 0 || line[0] == "" {
		return nil, errors.New("Exec names no program")
	}
	for _, arg := range line {
		if strings.IndexByte(arg, 0) >= 0 {
			return nil, errors.New("Exec has a NUL byte")
		}
	}
	return line, nil
}

// fill replaces the field codes in an argument, and tells whether it had any.
func (e *Entry) fill(word string, files []target) (arg string, filled bool, err error) {
	if strings.IndexByte(word, '%') < 0 {
		return word, false, nil
	}
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] != '%' {
			b.WriteByte(word[i])
			continue
		}
		i++
		if i == len(word) {
			return "", false, errors.New("Exec has a % without a field code; a percent sign is %%")
		}
		filled = true
		switch code := word[i]; code {
		case '%':
			b.WriteByte('%')
		case 'f', 'u', 'F', 'U':
			if len(files) > 0 {
				text, err := files[0].as(code)
				if err != nil {
					return "", false, err
				}
				b.WriteString(text)
			}
		case 'c':
			b.WriteString(e.Name[""])
		case 'k':
			b.WriteString(e.Path)
		case 'i':
			b.WriteString(e.Icon)
		case 'd', 'D', 'n', 'N', 'v', 'm': // deprecated, and nothing
		default:
			return "", false, fmt.Errorf("Exec has the unknown field code %%%c", code)
		}
	}
	return b.String(), filled, nil
}

// as gives a file the way that a field code wants it.
func (t target) as(code byte) (string, error) {
	if code == 'u' || code == 'U' {
		return t.uri, nil
	}
	if t.path == "" {
		return "", fmt.Errorf("the application opens files only, and %q is none", t.uri)
	}
	return t.path, nil
}

// Program is the name of the program that Exec runs, by which windows are
// known: without its directory, and not env, which so many start with.
func (e *Entry) Program() string {
	list, err := words(e.Exec)
	if err != nil {
		return ""
	}
	env := false
	for _, w := range list {
		name := path.Base(w)
		switch {
		case w == "" || name == "/" || name == ".":
			return ""
		case !env && name == "env":
			env = true
		case env && (strings.HasPrefix(w, "-") || strings.Contains(w, "=")):
		default:
			return name
		}
	}
	return ""
}
