package containers

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// A desktop is what alice's would be: the names that are told of applications
// and URLs.
type desktop struct {
	t     *testing.T
	lists chan *appspb.ApplicationList
	mimes chan *appspb.MimeTypes
	urls  chan string
	terms chan *appspb.TerminalParams
}

func (s *stack) desktop() *desktop {
	s.t.Helper()
	d := &desktop{s.t, make(chan *appspb.ApplicationList, 100), make(chan *appspb.MimeTypes, 100), make(chan string, 100), make(chan *appspb.TerminalParams, 100)}
	for _, o := range [][3]string{{dbus.VMApplicationsName, dbus.VMApplicationsPath, dbus.VMApplicationsInterface}, {dbus.URLHandlerName, dbus.URLHandlerPath, dbus.URLHandlerInterface}} {
		if err := s.conn.Export(desktopFace{d}, godbus.ObjectPath(o[1]), o[2]); err != nil {
			s.t.Fatal(err)
		}
		if _, err := s.conn.RequestName(o[0], 0); err != nil {
			s.t.Fatal(err)
		}
	}
	return d
}

// desktopFace is what the bus sees of it.
type desktopFace struct{ d *desktop }

func heard[M proto.Message](c chan M, m M, b []byte) *godbus.Error {
	if err := proto.Unmarshal(b, m); err != nil {
		return godbus.MakeFailedError(err)
	}
	c <- m
	return nil
}

func (f desktopFace) UpdateApplicationList(b []byte) *godbus.Error {
	return heard(f.d.lists, &appspb.ApplicationList{}, b)
}

func (f desktopFace) UpdateMimeTypes(b []byte) *godbus.Error {
	return heard(f.d.mimes, &appspb.MimeTypes{}, b)
}

func (f desktopFace) LaunchTerminal(b []byte) *godbus.Error {
	return heard(f.d.terms, &appspb.TerminalParams{}, b)
}

func (f desktopFace) OpenUrl(url string) *godbus.Error {
	f.d.urls <- url
	return nil
}

// list waits for a list that has an application, or has it not.
func (d *desktop) list(id string, there bool) *appspb.App {
	d.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case list := <-d.lists:
			i := slices.IndexFunc(list.GetApps(), func(a *appspb.App) bool { return a.GetDesktopFileId() == id })
			if list.GetVmName() != vm || list.GetContainerName() != container {
				d.t.Errorf("the list is of %s in %s", list.GetContainerName(), list.GetVmName())
			}
			switch {
			case there && i >= 0:
				return list.GetApps()[i]
			case !there && i < 0:
				return nil
			}
		case <-deadline:
			d.t.Fatalf("no list came with %s there: %v", id, there)
		}
	}
}

func soon[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came: ", what)
		panic("unreachable")
	}
}

// An application that comes into a container reaches the desktop, has its icon,
// starts with a file, lives on when the agent dies, and goes.
func (s *stack) applications(d *desktop) {
	s.t.Helper()
	t := s.t
	s.root(`
printf '#!/bin/sh\nprintf %%s "$1" >~/started.new; mv ~/started.new ~/started; exec sleep 1000\n' >/usr/local/bin/hello
chmod 755 /usr/local/bin/hello
mkdir -p /usr/local/share/icons/hicolor/48x48/apps /usr/local/share/applications
printf '\211PNG\r\n\032\nhello' >/usr/local/share/icons/hicolor/48x48/apps/hello.png
cat >/usr/local/share/applications/org.hello.desktop <<'END'
[Desktop Entry]
Type=Application
Name=Hello
Name[de]=Hallo
Exec=hello %f
TryExec=hello
Icon=hello
MimeType=text/plain;
END
sed 's/^Exec.*/Exec=hello %f\nTerminal=true/' /usr/local/share/applications/org.hello.desktop >/usr/local/share/applications/org.term.desktop
`)
	app := d.list("org.hello", true)
	if app.GetExecutableFileName() != "hello" || app.GetName().GetValues()[0].GetValue() != "Hello" {
		t.Errorf("the application is %v", app)
	}

	var icons ciceronepb.ContainerAppIconResponse
	s.must("GetContainerAppIcon", &ciceronepb.ContainerAppIconRequest{VmName: vm, ContainerName: container,
		DesktopFileIds: []string{"none", "org.hello"}, Size: 48, Scale: 1}, &icons)
	if len(icons.GetIcons()) != 1 || !bytes.Equal(icons.GetIcons()[0].GetIcon(), []byte("\x89PNG\r\n\x1a\nhello")) {
		t.Errorf("the icons are %v", &icons)
	}

	launch := func(id string) {
		t.Helper()
		var resp ciceronepb.LaunchContainerApplicationResponse
		s.must("LaunchContainerApplication", &ciceronepb.LaunchContainerApplicationRequest{VmName: vm, ContainerName: container,
			DesktopFileId: id, Files: []string{"/etc/hosts"}}, &resp)
		if !resp.GetSuccess() {
			t.Fatalf("launch %s: %s", id, resp.GetFailureReason())
		}
	}
	launch("org.hello")
	if got := s.shell(`until test -e started; do sleep 0.2; done; cat started`); got != "/etc/hosts" {
		t.Errorf("it was started with %q", got)
	}
	launch("org.term")
	if got := soon(t, d.terms, "a terminal").GetParams(); !slices.Equal(got, []string{"hello", "/etc/hosts"}) {
		t.Errorf("the terminal is to run %q", got)
	}

	// Programs of the container open links.
	s.shell("xdg-open 'https://a.example/?b=c&d' && /opt/google/cros-containers/bin/garcon --client --url mailto:a@b.example")
	for _, want := range []string{"https://a.example/?b=c&d", "mailto:a@b.example"} {
		if got := soon(t, d.urls, want); got != want {
			t.Errorf("the desktop opens %q, want %q", got, want)
		}
	}

	before := s.root("pgrep -x sleep")
	s.root("pkill -KILL -x garcon")
	await[*ciceronepb.ContainerStartedSignal](s.ear, nil)
	d.list("org.hello", true)
	if after := s.root("pgrep -x sleep"); !strings.Contains(after, before) {
		t.Errorf("of the processes %q there are %q after the agent's death", before, after)
	}
	s.root("rm /usr/local/share/applications/org.hello.desktop")
	d.list("org.hello", false)
}
