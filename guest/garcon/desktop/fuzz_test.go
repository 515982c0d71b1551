package desktop_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(gedit))
	files, _ := filepath.Glob("/usr/share/applications/*.desktop")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := desktop.Parse(data)
		if err != nil {
			return
		}
		e.Shown("/bin")
		for locale, text := range e.Name {
			if !utf8.ValidString(locale) || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
				t.Errorf("Name[%q] is %q", locale, text)
			}
		}
		for _, list := range e.Keywords {
			for _, text := range list {
				if text == "" || !utf8.ValidString(text) {
					t.Errorf("a keyword is %q", text)
				}
			}
		}
	})
}

func FuzzCommands(f *testing.F) {
	for _, exec := range []string{"gedit %U", `sh -c "echo \"%f\""`, "x %i %c %k %% %d", `env A='b c' x\ y %F`, `x "`, "%"} {
		f.Add(exec, "/a file", "https://b.example/")
	}
	f.Fuzz(func(t *testing.T, exec, one, two string) {
		e := &desktop.Entry{Exec: exec, Icon: "i", Name: desktop.Text{"": "n"}, Path: "/p"}
		e.Program()
		for _, files := range [][]string{nil, {one}, {one, two}} {
			lines, err := e.Commands(files)
			if err != nil {
				continue
			}
			if len(lines) == 0 || len(lines) > 2 {
				t.Fatalf("%d command lines", len(lines))
			}
			for _, line := range lines {
				if len(line) == 0 || line[0] == "" {
					t.Fatalf("no program in %q", line)
				}
				for _, arg := range line {
					if strings.ContainsRune(arg, 0) {
						t.Fatalf("a NUL in %q", line)
					}
				}
			}
		}
	})
}
