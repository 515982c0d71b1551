package desktop_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
)

const gedit = `# a comment
[Desktop Entry]
Type=Application
Name=Text Editor
Name[de] = Texteditor
Name[pt_BR]=Editor de texto
Name[sr@latin]=Urediva\sč
Comment=Edit\nfiles
Keywords=Text;Plain\;Write;;Notepad
Keywords[de]=Text;
Icon=org.gnome.gedit
Icon[de]=other
TryExec=/bin/sh
Exec=gedit %U
Path=/tmp
Terminal=false
StartupNotify=true
StartupWMClass=Gedit
MimeType=text/plain;text/x-c;
Categories=GNOME;Utility;
X-Other=1

[Desktop Action new-window]
Name=Another
Exec=gedit --new-window
`

func TestParse(t *testing.T) {
	e, err := desktop.Parse([]byte(gedit))
	if err != nil {
		t.Fatal(err)
	}
	want := &desktop.Entry{
		Type:     "Application",
		Name:     desktop.Text{"": "Text Editor", "de": "Texteditor", "pt_BR": "Editor de texto", "sr@latin": "Urediva č"},
		Comment:  desktop.Text{"": "Edit\nfiles"},
		Keywords: desktop.Lists{"": {"Text", "Plain;Write", "Notepad"}, "de": {"Text"}},
		Icon:     "org.gnome.gedit", TryExec: "/bin/sh", Exec: "gedit %U", Dir: "/tmp", WMClass: "Gedit",
		StartupNotify: true,
		MimeTypes:     []string{"text/plain", "text/x-c"}, Categories: []string{"GNOME", "Utility"},
	}
	if diff := cmp.Diff(want, e, cmp.Comparer(func(a, b desktop.Entry) bool {
		return fmt.Sprint(a) == fmt.Sprint(b)
	})); diff != "" {
		t.Error(diff)
	}
}

func TestParseOdd(t *testing.T) {
	const head = "[Desktop Entry]\nType=Application\n"
	for name, c := range map[string]struct {
		text, want string // the default name, or "" for a refusal
	}{
		"empty":                  {"", ""},
		"no group":               {"Type=Application\nName=x\n", ""},
		"other group first":      {"[Other]\na=b\n" + head + "Name=x\n", ""},
		"no name":                {head, ""},
		"name only translated":   {head + "Name[de]=x\n", ""},
		"no type":                {"[Desktop Entry]\nName=x\n", ""},
		"line that is no key":    {head + "Name=x\nwhat\n", ""},
		"key without name":       {head + "Name=x\n=y\n", ""},
		"open group":             {head + "Name=x\n[Other\n", ""},
		"group with brackets":    {head + "Name=x\n[Ot[h]er]\n", ""},
		"group without name":     {head + "Name=x\n[]\n", ""},
		"CRLF":                   {"[Desktop Entry]\r\nType=Application\r\nName=x\r\n\r\n", "x"},
		"BOM":                    {"\xef\xbb\xbf" + head + "Name=x\n", "x"},
		"no end of line":         {head + "Name=x", "x"},
		"last one counts":        {head + "Name=x\nName=y\n", "y"},
		"bad translation":        {head + "Name[de]=\xff\xfe\nName=x\n", "x"},
		"bad name":               {head + "Name=\xff\xfe\n", ""},
		"NUL":                    {head + "Name=x\nName=a\x00b\n", "x"},
		"NUL in a line":          {head + "Name=x\n\x00\n", ""},
		"bad locale":             {head + "Name=x\nName[d e]=y\nName[]=z\nName[de=q\n", "x"},
		"huge value":             {head + "Name=x\nName=" + strings.Repeat("y", 65<<10) + "\n", "x"},
		"keys with other signs":  {head + "Name=x\nX_1=2\nX Y=2\nÜ=1\n", "x"},
		"thousands of keys":      {head + "Name=x\n" + strings.Repeat("X-A=1\n", 5000), "x"},
		"too many keys":          {head + "Name=x\n" + strings.Repeat("X-A=1\n", 20000), ""},
		"many keys elsewhere":    {head + "Name=x\n[Other]\n" + strings.Repeat("a=b\n", 100000), "x"},
		"too many groups":        {head + "Name=x\n" + strings.Repeat("[a]\n", 10000), ""},
		"spaces round the equal": {head + "Name \t= \tx y\n", "x y"},
		"escapes":                {head + `Name=\sa\tb\\c\qd\` + "\n", " a\tb\\c\\qd\\"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := desktop.Parse([]byte(c.text))
			switch {
			case c.want == "" && err == nil:
				t.Errorf("taken, with the name %q", e.Name[""])
			case c.want != "" && err != nil:
				t.Error(err)
			case c.want != "" && e.Name[""] != c.want:
				t.Errorf("the name is %q, want %q", e.Name[""], c.want)
			}
		})
	}
}

func TestManyLocales(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("[Desktop Entry]\nType=Application\nName=x\n")
	for i := range 10000 {
		fmt.Fprintf(&b, "Name[l%d]=n\n", i)
	}
	e, err := desktop.Parse(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Name) > 512 {
		t.Errorf("%d translations are kept", len(e.Name))
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.desktop")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large.desktop")
	write(t, large, gedit)
	if err := os.Truncate(large, 11<<20); err != nil {
		t.Fatal(err)
	}
	bomb := filepath.Join(dir, "bomb.desktop")
	write(t, bomb, gedit)
	if err := os.Truncate(bomb, 10<<20); err != nil { // 10 MB of NUL in one line
		t.Fatal(err)
	}
	for _, path := range []string{fifo, large, bomb, dir, "/dev/zero", filepath.Join(dir, "none.desktop")} {
		if _, err := desktop.Load(path); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
}

func TestShown(t *testing.T) {
	bin := t.TempDir()
	write(t, filepath.Join(bin, "there"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(bin, "there"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bin, "text"), "")
	for name, c := range map[string]struct {
		more string
		want bool
	}{
		"plain":                     {"", true},
		"a link":                    {"Type=Link\n", false},
		"hidden":                    {"Hidden=true\n", false},
		"hidden, oddly":             {"Hidden=yes\n", true},
		"no display":                {"NoDisplay=true\n", false},
		"no display, for files":     {"NoDisplay=true\nMimeType=text/plain\n", true},
		"no Exec":                   {"Exec=\n", false},
		"settings":                  {"Categories=GTK;Settings;\n", false},
		"only in GNOME":             {"OnlyShowIn=KDE;GNOME;\n", true},
		"only in KDE":               {"OnlyShowIn=KDE;\n", false},
		"only nowhere":              {"OnlyShowIn=\n", false},
		"not in GNOME":              {"NotShowIn=GNOME;\n", false},
		"not in KDE":                {"NotShowIn=KDE;\n", true},
		"TryExec in PATH":           {"TryExec=there\n", true},
		"TryExec absolute":          {"TryExec=" + bin + "/there\n", true},
		"TryExec not there":         {"TryExec=missing\n", false},
		"TryExec not executable":    {"TryExec=text\n", false},
		"TryExec a directory":       {"TryExec=" + bin + "\n", false},
		"TryExec relative":          {"TryExec=./there\n", false},
		"TryExec a relative inside": {"TryExec=sub/there\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := desktop.Parse([]byte("[Desktop Entry]\nType=Application\nName=x\nExec=x\n" + c.more))
			if err != nil {
				t.Fatal(err)
			}
			if got := e.Shown(bin); got != c.want {
				t.Errorf("shown: %v", got)
			}
		})
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
