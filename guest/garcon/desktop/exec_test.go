package desktop_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

func TestCommands(t *testing.T) {
	for name, c := range map[string]struct {
		exec  string
		files []string
		want  [][]string // nil: refused
	}{
		"plain":                     {"vim", nil, [][]string{{"vim"}}},
		"file":                      {"vim %f", []string{"/a b"}, [][]string{{"vim", "/a b"}}},
		"file as URL":               {"vim %u", []string{"/a b%"}, [][]string{{"vim", "file:///a%20b%25"}}},
		"URL":                       {"x %u", []string{"https://a.example/?q=%20"}, [][]string{{"x", "https://a.example/?q=%20"}}},
		"URL for files":             {"x %f", []string{"https://a.example/"}, nil},
		"file URL for files":        {"x %f", []string{"file:///a%20b"}, [][]string{{"x", "/a b"}}},
		"file URL of a host":        {"x %f", []string{"file://server/a"}, nil},
		"files":                     {"x -- %F -q", []string{"/a", "/b"}, [][]string{{"x", "--", "/a", "/b", "-q"}}},
		"URLs":                      {"x %U", []string{"/a", "http://b"}, [][]string{{"x", "file:///a", "http://b"}}},
		"no files":                  {"x %F %f", nil, [][]string{{"x"}}},
		"one at a time":             {"x %f", []string{"/a", "/b"}, [][]string{{"x", "/a"}, {"x", "/b"}}},
		"within an argument":        {"x --open=%f", []string{"/a"}, [][]string{{"x", "--open=/a"}}},
		"no place for files":        {"x -q", []string{"/a"}, [][]string{{"x", "-q", "/a"}}},
		"relative":                  {"x %f", []string{"a"}, nil},
		"NUL":                       {"x %f", []string{"/a\x00"}, nil},
		"an option as file":         {"x %f", []string{"--help"}, nil},
		"icon":                      {"x %i", nil, [][]string{{"x", "--icon", "pic"}}},
		"name and location":         {"x %c %k", nil, [][]string{{"x", "The Name", "/path/x.desktop"}}},
		"percent":                   {"x 100%% %%f", nil, [][]string{{"x", "100%", "%f"}}},
		"deprecated":                {"x %d %D %n %N %v %m a%mb", nil, [][]string{{"x", "ab"}}},
		"unknown code":              {"x %z", nil, nil},
		"open code":                 {"x %", nil, nil},
		"quotes":                    {`x "a b" "" c`, nil, [][]string{{"x", "a b", "", "c"}}},
		"escapes in quotes":         {`x "\"\` + "`" + `\$\\\\n\n"`, nil, [][]string{{"x", "\"`$\\n\n"}}},
		"single quotes":             {`sh -c 'echo "$HOME" \n'`, nil, [][]string{{"sh", "-c", `echo "$HOME" ` + "\n"}}},
		"quotes within an argument": {`env WINEPREFIX="/home/u/.wine dir" wine C:\\\\a\\ b`, nil, [][]string{{"env", "WINEPREFIX=/home/u/.wine dir", "wine", `C:\a b`}}},
		"nothing is expanded":       {"x $HOME ~ * `id` ;ls", nil, [][]string{{"x", "$HOME", "~", "*", "`id`", ";ls"}}},
		"codes of files are data":   {"x %f", []string{"/%f %u"}, [][]string{{"x", "/%f %u"}}},
		"open quotes":               {`x "a`, nil, nil},
		"open single quotes":        {`x 'a`, nil, nil},
		"backslash at the end":      {`x a\\`, nil, nil},
		"empty":                     {" ", nil, nil},
		"no program":                {"%f", nil, nil},
		"empty program":             {`"" a`, nil, nil},
		"spaces":                    {"  x \t a  ", nil, [][]string{{"x", "a"}}},
		"too many at a time":        {"x %f", strings.Split(strings.Repeat("/a,", 40)+"/a", ","), nil},
		"too many files":            {"x %F", strings.Split(strings.Repeat("/a,", 5000)+"/a", ","), nil},
		"too many arguments":        {strings.Repeat("x ", 5000), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := desktop.Parse([]byte("[Desktop Entry]\nType=Application\nName=The Name\nIcon=pic\nExec=" + c.exec + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			e.Path = "/path/x.desktop"
			got, err := e.Commands(c.files)
			if (err == nil) != (c.want != nil) {
				t.Fatalf("%q, %v", got, err)
			}
			if diff := cmp.Diff(c.want, got); err == nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestProgram(t *testing.T) {
	for exec, want := range map[string]string{
		"gedit %U":                          "gedit",
		"/usr/bin/gedit %U":                 "gedit",
		`"/opt/a b/run me" x`:               "run me",
		"env A=1 B=2 -u C /usr/bin/x":       "C",
		"/usr/bin/env A=1 /usr/bin/x y":     "x",
		"env A=1":                           "",
		"":                                  "",
		`"open`:                             "",
		"/":                                 "",
		"A=1 x":                             "A=1",
		"env -i BAMF_HINT=/a/b.desktop snp": "snp",
	} {
		e := desktop.Entry{Exec: exec}
		if got := e.Program(); got != want {
			t.Errorf("%q runs %q, want %q", exec, got, want)
		}
	}
}

func TestIDsAndBack(t *testing.T) {
	for path, want := range map[string]string{
		"vim.desktop":             "vim",
		"kde4/konsole.desktop":    "kde4-konsole",
		"a/b-c/d.desktop":         "a-b-c-d",
		"org.gnome.gedit.desktop": "org.gnome.gedit",
		"vim":                     "",
		".desktop":                "",
		"a/.desktop":              "",
		"vim.desktop.bak":         "",
		"\xff.desktop":            "",
	} {
		if got := desktop.ID(path); got != want {
			t.Errorf("%q has the id %q, want %q", path, got, want)
		}
	}
	home, system := t.TempDir(), t.TempDir()
	outside := filepath.Join(filepath.Dir(home), "x.desktop")
	for path, name := range map[string]string{
		filepath.Join(home, "both.desktop"):                         "mine",
		filepath.Join(system, "both.desktop"):                       "system",
		filepath.Join(system, "kde4/konsole.desktop"):               "konsole",
		filepath.Join(system, "a/b-c/d.desktop"):                    "deep",
		filepath.Join(system, "a-b/x.desktop"):                      "hyphen",
		filepath.Join(system, "broken.desktop"):                     "",
		filepath.Join(home, "masked.desktop"):                       "",
		filepath.Join(system, "masked.desktop"):                     "still there",
		filepath.Join(system, "a/b/c/d/e/f/g/h/i/j/k/l.desktop"):    "too deep",
		filepath.Join(system, "1-2-3-4-5-6-7-8-9-10-11-12.desktop"): "many hyphens",
		outside: "outside",
	} {
		write(t, path, "[Desktop Entry]\nType=Application\nName="+name+"\nExec=x\n")
	}
	dirs := []string{home, filepath.Join(home, "none"), system}
	for id, want := range map[string]string{
		"both":                       "mine",
		"both.desktop":               "mine",
		"kde4-konsole":               "konsole",
		"a-b-c-d":                    "deep",
		"a-b-x":                      "hyphen",
		"masked":                     "still there",
		"1-2-3-4-5-6-7-8-9-10-11-12": "many hyphens",
		"a-b-c-d-e-f-g-h-i-j-k-l":    "",
		"broken":                     "",
		"none":                       "",
		"..-x":                       "",
		"../x":                       "",
		"kde4/konsole":               "",
		"":                           "",
		"-":                          "",
		"both\x00":                   "",
		"\xff":                       "",
		strings.Repeat("-", 2000):    "",
		strings.Repeat("a", 300):     "",
	} {
		e, err := desktop.Find(dirs, id)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is found at %s", id, e.Path)
		case want != "" && err != nil:
			t.Error(err)
		case want != "" && e.Name[""] != want:
			t.Errorf("%q is %q, want %q", id, e.Name[""], want)
		}
	}
}
