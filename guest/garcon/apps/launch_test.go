package apps_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

func (p *place) launch(req *pb.LaunchApplicationRequest) *pb.LaunchApplicationResponse {
	p.t.Helper()
	resp, err := p.LaunchApplication(context.Background(), req)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

// tell writes what a program sees of itself into a file: its arguments, its
// environment, where it is.
const tell = `out="$1"; shift
io="$(readlink /proc/$$/fd/0) $(readlink /proc/$$/fd/1) $(readlink /proc/$$/fd/2)"
{
	for arg; do echo "arg $arg"; done
	env | sort | sed 's/^/env /'
	echo "cwd $(pwd)"
	echo "stdio $io"
	read -r pid comm state ppid pgrp session rest </proc/$$/stat
	[ "$pgrp" = "$$" ] && [ "$session" = "$$" ] && echo leader
} >"$out.new"
mv "$out.new" "$out"
`

func TestLaunch(t *testing.T) {
	p := newPlace(t, func(p *place) {
		p.environ = append(p.environ, "DISPLAY=:0", "DISPLAY_LOW_DENSITY=:1", "WAYLAND_DISPLAY=w0", "WAYLAND_DISPLAY_LOW_DENSITY=w1",
			"XCURSOR_SIZE_LOW_DENSITY=16", "NOTIFY_SOCKET=/x", "DESKTOP_STARTUP_ID=old", "KEEP=it")
	})
	p.run()
	p.script("tell", tell)
	work := t.TempDir()
	for name, c := range map[string]struct {
		keys       string
		req        *pb.LaunchApplicationRequest
		want, none []string
	}{
		"plain": {"", &pb.LaunchApplicationRequest{},
			[]string{"cwd HOME", "stdio /dev/null /dev/null /dev/null", "leader", "env DISPLAY=:0", "env KEEP=it"},
			[]string{"arg ", "env NOTIFY_SOCKET", "env DESKTOP_STARTUP_ID", "env GTK_IM_MODULE", "env QT_IM_MODULE", "env CROS_IM_VIRTUAL_KEYBOARD"}},
		"files": {"Path=" + work + "\nStartupNotify=true\n", &pb.LaunchApplicationRequest{Files: []string{"/a b", "/c;id"}},
			[]string{"arg /a b", "arg /c;id", "cwd " + work, "env DESKTOP_STARTUP_ID=files"}, nil},
		"scaled": {"", &pb.LaunchApplicationRequest{DisplayScaling: pb.LaunchApplicationRequest_SCALED},
			[]string{"env DISPLAY=:1", "env WAYLAND_DISPLAY=w1", "env XCURSOR_SIZE=16"}, nil},
		"features": {"", &pb.LaunchApplicationRequest{ContainerFeatures: []pb.ContainerFeature{1, 2, 3, 0, 99}},
			[]string{"env GTK_IM_MODULE=cros", "env QT_IM_MODULE=cros", "env CROS_IM_VIRTUAL_KEYBOARD=1"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			p.write("applications/"+name+".desktop", "[Desktop Entry]\nType=Application\nName=x\nExec=tell "+out+" %F\n"+c.keys)
			c.req.DesktopFileId = name
			if resp := p.launch(c.req); !resp.GetSuccess() {
				t.Fatal(resp.GetFailureReason())
			}
			text := p.file(out)
			lines := strings.Split(text, "\n")
			for _, want := range c.want {
				if want = strings.ReplaceAll(want, "HOME", p.home); !slices.Contains(lines, want) {
					t.Errorf("no line %q in\n%s", want, text)
				}
			}
			for _, none := range c.none {
				if strings.Contains(text, none) {
					t.Errorf("%q is in\n%s", none, text)
				}
			}
		})
	}
}

func TestLaunchOneAtATime(t *testing.T) {
	p := newPlace(t)
	p.run()
	dir := t.TempDir()
	p.script("one", `echo "$1" >"$1.new"; mv "$1.new" "$1"`+"\n")
	p.write("applications/one.desktop", "[Desktop Entry]\nType=Application\nName=x\nExec=one %f\n")
	files := []string{dir + "/a", dir + "/b", dir + "/c"}
	if resp := p.launch(&pb.LaunchApplicationRequest{DesktopFileId: "one", Files: files}); !resp.GetSuccess() {
		t.Fatal(resp.GetFailureReason())
	}
	for _, f := range files {
		p.file(f)
	}
}

func TestLaunchInTerminal(t *testing.T) {
	p := newPlace(t)
	p.write("applications/t.desktop", "[Desktop Entry]\nType=Application\nName=x\nExec=vim %F\nTerminal=true\n")
	if resp := p.launch(&pb.LaunchApplicationRequest{DesktopFileId: "t", Files: []string{"/a b"}}); !resp.GetSuccess() {
		t.Fatal(resp.GetFailureReason())
	}
	if diff := cmp.Diff([]string{"vim", "/a b"}, <-p.host.terminals); diff != "" {
		t.Error(diff)
	}
}

func TestLaunchFails(t *testing.T) {
	p := newPlace(t)
	p.write(filepath.Join(p.bin, "noexec"), "text")
	if err := os.Chmod(p.write(filepath.Join(p.bin, "garbage"), "\x00\x01"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.script("lost", "")
	if err := os.Chmod(p.write(filepath.Join(p.bin, "interpreter"), "#!/no/such/program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text  string
		files []string
		want  string
	}{
		"missing":     {entry("no-such-program", ""), nil, "not found"},
		"relative":    {entry("./lost", ""), nil, "not found"},
		"noexec":      {entry("noexec", ""), nil, "not found"},
		"garbage":     {entry("garbage", ""), nil, "no program"},
		"interpreter": {entry("interpreter", ""), nil, "no such file"},
		"path":        {entry("lost", "Path=/no/such\n"), nil, "directory"},
		"link":        {"[Desktop Entry]\nType=Link\nName=x\nURL=x\n", nil, "no application"},
		"hidden":      {entry("lost", "Hidden=true\n"), nil, "removed"},
		"noline":      {"[Desktop Entry]\nType=Application\nName=x\n", nil, "empty"},
		"quote":       {entry("lost", "Exec=lost \"\n"), nil, "quotation"},
		"files":       {entry("lost", ""), []string{"relative"}, "absolute"},
		"long":        {entry("lost", ""), []string{"/" + strings.Repeat("x", 1<<20)}, "too long"},
		"broken":      {"what", nil, "valid"},
	} {
		t.Run(name, func(t *testing.T) {
			p.write("applications/"+name+".desktop", c.text)
			resp := p.launch(&pb.LaunchApplicationRequest{DesktopFileId: name, Files: c.files})
			if resp.GetSuccess() || !strings.Contains(resp.GetFailureReason(), c.want) {
				t.Errorf("success %v, %q, want %q", resp.GetSuccess(), resp.GetFailureReason(), c.want)
			}
		})
	}
	for _, id := range []string{"", "none", "../x", "\xff"} {
		if resp := p.launch(&pb.LaunchApplicationRequest{DesktopFileId: id}); resp.GetSuccess() || !strings.Contains(resp.GetFailureReason(), "no application has this id") {
			t.Errorf("%q: %v", id, resp)
		}
	}
}

// Programs that end leave no zombies.
func TestChildrenAreReaped(t *testing.T) {
	p := newPlace(t)
	p.run()
	out := filepath.Join(t.TempDir(), "out")
	p.script("pid", `echo $$ >"`+out+`.new"; mv "`+out+`.new" "`+out+"\"\n")
	p.write("applications/pid.desktop", "[Desktop Entry]\nType=Application\nName=x\nExec=pid\n")
	for range 20 {
		os.Remove(out)
		if resp := p.launch(&pb.LaunchApplicationRequest{DesktopFileId: "pid"}); !resp.GetSuccess() {
			t.Fatal(resp.GetFailureReason())
		}
		proc := "/proc/" + strings.TrimSpace(p.file(out))
		p.gone(proc)
	}
}

func TestIcons(t *testing.T) {
	p := newPlace(t)
	const png, svg = "\x89PNG\r\n\x1a\n", "<svg/>"
	p.write("pixmaps/a.png", png+"a")
	p.write("pixmaps/b.svg", svg)
	p.write("applications/a.desktop", entry("a", "Icon=a\n"))
	p.write("applications/b.desktop", entry("b", "Icon="+p.system+"/pixmaps/b.svg\n"))
	p.write("applications/none.desktop", entry("c", "Icon=none\n"))
	p.write("applications/noicon.desktop", entry("d", ""))
	resp, err := p.GetIcon(context.Background(), &pb.IconRequest{DesktopFileIds: []string{"b", "none", "noicon", "a", "missing", "", "a", "\xff"}, IconSize: -5, Scale: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range resp.GetDesktopIcons() {
		got = append(got, i.GetDesktopFileId()+" "+i.GetFormat().String()+" "+string(i.GetIcon()))
	}
	if diff := cmp.Diff([]string{"b SVG " + svg, "a PNG " + png + "a"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestIconsFitIntoAMessage(t *testing.T) {
	p := newPlace(t)
	var ids []string
	for i := range 8 {
		name := string(rune('a' + i))
		if err := os.Truncate(p.write("pixmaps/"+name+".png", "\x89PNG\r\n\x1a\n"), 1000_000); err != nil {
			t.Fatal(err)
		}
		p.write("applications/"+name+".desktop", entry(name, "Icon="+name+"\n"))
		ids = append(ids, name)
	}
	p.write("pixmaps/z.png", "\x89PNG\r\n\x1a\n")
	p.write("applications/z.desktop", entry("z", "Icon=z\n"))
	for range 100000 {
		ids = append(ids, "a", "missing")
	}
	resp, err := p.GetIcon(context.Background(), &pb.IconRequest{DesktopFileIds: append(ids, "z")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range resp.GetDesktopIcons() {
		got = append(got, i.GetDesktopFileId())
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d", "z"}, got); diff != "" {
		t.Error(diff)
	}
}
