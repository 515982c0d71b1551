package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/guest/garcon"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// A desk is a host that follows one container.
type desk struct {
	pb.UnimplementedContainerListenerServer
	refuse chan func() error // what ContainerReady does first, if anything
	ready  chan *pb.ContainerStartupInfo
	lists  chan []*pb.Application
	dark   chan string
}

var empty = &vmtoolspb.EmptyMessage{}

func (d *desk) ContainerReady(_ context.Context, m *pb.ContainerStartupInfo) (*vmtoolspb.EmptyMessage, error) {
	select {
	case refused := <-d.refuse:
		return nil, refused()
	default:
	}
	d.ready <- m
	return empty, nil
}

func (d *desk) ContainerShutdown(context.Context, *pb.ContainerShutdownInfo) (*vmtoolspb.EmptyMessage, error) {
	return empty, nil
}

func (d *desk) UpdateApplicationList(_ context.Context, m *pb.UpdateApplicationListRequest) (*vmtoolspb.EmptyMessage, error) {
	d.lists <- m.GetApplication()
	return empty, nil
}

func (d *desk) UpdateMimeTypes(context.Context, *pb.UpdateMimeTypesRequest) (*vmtoolspb.EmptyMessage, error) {
	return empty, nil
}

func (d *desk) PendingUpdateApplicationListCalls(context.Context, *pb.PendingAppListUpdateCount) (*vmtoolspb.EmptyMessage, error) {
	return empty, nil
}

func (d *desk) InhibitScreensaver(_ context.Context, m *pb.InhibitScreensaverInfo) (*vmtoolspb.EmptyMessage, error) {
	d.dark <- fmt.Sprint("on ", m.GetClient())
	return empty, nil
}

func (d *desk) UninhibitScreensaver(context.Context, *pb.UninhibitScreensaverInfo) (*vmtoolspb.EmptyMessage, error) {
	d.dark <- "off"
	return empty, nil
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

// The agent as it is wired together, with Unix sockets in the place of vsock.
func TestAgentHasApplications(t *testing.T) {
	dir, err := os.MkdirTemp("", "garcon-") // a short name, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	bus := dbustest.Lax(t)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", bus.Address)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+dir+"/no-system-bus")
	t.Setenv("XDG_DATA_DIRS", dir+"/share")
	t.Setenv("XDG_DATA_HOME", "")
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("token", "tok")
	write("home/.profile", "")
	write("share/applications/a.desktop", "[Desktop Entry]\nType=Application\nName=A\nExec="+dir+"/program %F\nIcon="+dir+"/a.svg\n")
	write("program", "#!/bin/sh\necho \"$1\" >"+dir+"/new && mv "+dir+"/new "+dir+"/out\n")
	write("a.svg", "<svg/>")

	// What is said before a new agent is known would be of the one before.
	asked := bus.Connect(t)
	refused := func() error {
		asked.Object("org.freedesktop.ScreenSaver", "/ScreenSaver").Call("org.freedesktop.ScreenSaver.Inhibit", 0, "early", "film")
		return status.Error(codes.FailedPrecondition, "the VM is not known yet")
	}
	d := &desk{refuse: make(chan func() error, 8), ready: make(chan *pb.ContainerStartupInfo, 8), lists: make(chan []*pb.Application, 64), dark: make(chan string, 8)}
	l, err := net.Listen("unix", dir+"/host")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		d.refuse <- refused
	}
	face := grpc.NewServer()
	pb.RegisterContainerListenerServer(face, d)
	served := make(chan struct{})
	go func() { defer close(served); face.Serve(l) }()
	t.Cleanup(func() { face.Stop(); <-served })

	dial := func(path string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", path) }
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- garcon.Run(ctx, garcon.Config{
			User: session.User{Name: "u", Home: dir + "/home"}, Environ: []string{"PATH=/usr/bin:/bin"},
			TokenPath: dir + "/token", Dial: dial(dir + "/host"),
			Listen:   func(port uint32) (net.Listener, error) { return net.Listen("unix", fmt.Sprint(dir, "/", port)) },
			SFTPPath: dir + "/none", VshdPath: dir + "/none", Packages: packagekit.NewClient(),
			Parts: (&serverOptions{}).parts, Status: func(string) {}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}()
	defer func() {
		stop()
		if err := soon(t, done, "the agent's end"); err != nil {
			t.Error(err)
		}
	}()
	port := soon(t, d.ready, "ContainerReady").GetGarconPort()
	if list := soon(t, d.lists, "a list"); len(list) != 1 || list[0].GetDesktopFileId() != "a" {
		t.Errorf("the list is %v", list)
	}
	conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(fmt.Sprint(dir, "/", port))(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	agent := pb.NewGarconClient(conn)
	icons, err := agent.GetIcon(t.Context(), &pb.IconRequest{DesktopFileIds: []string{"a", "b"}, IconSize: 48, Scale: 1})
	if err != nil || len(icons.GetDesktopIcons()) != 1 || icons.GetDesktopIcons()[0].GetFormat() != pb.DesktopIcon_SVG {
		t.Errorf("icons: %v, %v", icons, err)
	}
	launched, err := agent.LaunchApplication(t.Context(), &pb.LaunchApplicationRequest{DesktopFileId: "a", Files: []string{"/file"}})
	if err != nil || !launched.GetSuccess() {
		t.Fatalf("launch: %v, %v", launched, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; {
		text, err := os.ReadFile(dir + "/out")
		if err == nil {
			if string(text) != "/file\n" {
				t.Errorf("the program was started with %q", text)
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the program did not run")
		}
	}
	program := bus.Connect(t)
	for deadline := time.After(patience); ; {
		err := program.Object("org.freedesktop.ScreenSaver", "/ScreenSaver").Call("org.freedesktop.ScreenSaver.Inhibit", 0, "player", "film").Err
		if err == nil {
			break
		}
		select {
		case <-tick.C: // it is not on the bus yet
		case <-deadline:
			t.Fatal(err)
		}
	}
	if got := soon(t, d.dark, "the screen saver"); got != "on player" {
		t.Errorf("the host heard %q", got)
	}
	stop()
	if got := soon(t, d.dark, "the end of it"); got != "off" {
		t.Errorf("the host heard %q", got)
	}
}
