package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/guest/garcon/bus"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// A host is the far end.
type host struct {
	said    chan string // what became of the screen
	refuse  chan error  // answers of Inhibit, if there is one
	asked   chan *pb.SelectFileRequest
	answers chan []string
	gone    chan struct{} // a choice was given up
}

func (h *host) InhibitScreensaver(_ context.Context, req *pb.InhibitScreensaverInfo) error {
	select {
	case err := <-h.refuse:
		return err
	default:
	}
	h.said <- fmt.Sprintf("on %d %s: %s", req.GetCookie(), req.GetClient(), req.GetReason())
	return nil
}

func (h *host) UninhibitScreensaver(_ context.Context, req *pb.UninhibitScreensaverInfo) error {
	h.said <- fmt.Sprintf("off %d", req.GetCookie())
	return nil
}

func (h *host) SelectFile(ctx context.Context, req *pb.SelectFileRequest) (*pb.SelectFileResponse, error) {
	h.asked <- req
	select {
	case files := <-h.answers:
		if files == nil {
			return nil, errors.New("no desktop")
		}
		return &pb.SelectFileResponse{Files: files}, nil
	case <-ctx.Done():
		h.gone <- struct{}{}
		return nil, ctx.Err()
	}
}

// A place is a session with the service on it.
type place struct {
	t    *testing.T
	bus  *dbustest.Bus
	host *host
	stop func()
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, bus: dbustest.Lax(t), host: &host{
		said: make(chan string, 1000), refuse: make(chan error, 1), asked: make(chan *pb.SelectFileRequest, 100),
		answers: make(chan []string), gone: make(chan struct{}, 100),
	}}
	s := bus.New(bus.Config{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Host: p.host, Address: p.bus.Address,
		Types: func() map[string]string {
			return map[string]string{"png": "image/png", "jpg": "image/jpeg", "txt": "text/plain"}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(p.stop)
	p.ready()
	return p
}

// ready waits until the names are taken.
func (p *place) ready() {
	p.t.Helper()
	conn := p.bus.Connect(p.t)
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var there bool
		if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.impl.portal.desktop.cros").Store(&there); err != nil {
			p.t.Fatal(err)
		}
		if there {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatal("the service did not come")
		}
	}
}

// heard is the next thing that the host was told.
func (p *place) heard(want string) {
	p.t.Helper()
	select {
	case got := <-p.host.said:
		if got != want {
			p.t.Errorf("the host heard %q, want %q", got, want)
		}
	case <-time.After(patience):
		p.t.Fatalf("the host did not hear %q", want)
	}
}

func inhibit(conn *dbus.Conn, args ...any) (cookie uint32, err error) {
	err = conn.Object("org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver").Call("org.freedesktop.ScreenSaver.Inhibit", 0, args...).Store(&cookie)
	return cookie, err
}

func uninhibit(conn *dbus.Conn, cookie uint32) error {
	return conn.Object("org.freedesktop.ScreenSaver", "/ScreenSaver").Call("org.freedesktop.ScreenSaver.UnInhibit", 0, cookie).Err
}

func TestScreenStaysOn(t *testing.T) {
	p := newPlace(t)
	a, b := p.bus.Connect(t), p.bus.Connect(t)
	one, err := inhibit(a, "Player", "a\nfilm "+strings.Repeat("x", 5000))
	if err != nil {
		t.Fatal(err)
	}
	p.heard(fmt.Sprintf("on %d Player: a film %s", one, strings.Repeat("x", 1024-7)))
	two, err := inhibit(b, "Other", "")
	if err != nil || two == one {
		t.Fatal(two, err)
	}
	p.heard(fmt.Sprintf("on %d Other: ", two))
	if err := uninhibit(b, one); err == nil {
		t.Error("another program's cookie is taken")
	}
	if err := uninhibit(a, one); err != nil {
		t.Error(err)
	}
	p.heard(fmt.Sprintf("off %d", one))
	if err := uninhibit(a, one); err == nil {
		t.Error("a cookie is taken twice")
	}
	b.Close() // its inhibition ends with it
	p.heard(fmt.Sprintf("off %d", two))

	p.host.refuse <- errors.New("no")
	if _, err := inhibit(a, "Player", ""); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("the host refuses: %v", err)
	}
	p.heard(fmt.Sprintf("off %d", two+1)) // to be sure
	if _, err := inhibit(a, []string{"wrong"}, ""); err == nil {
		t.Error("a wrong argument is taken")
	}
}

func TestInhibitionsAreBounded(t *testing.T) {
	p := newPlace(t)
	total, conns := 0, []*dbus.Conn{}
	for range 10 {
		conn := p.bus.Connect(t)
		conns = append(conns, conn)
		for range 100 {
			if _, err := inhibit(conn, "x", "y"); err != nil {
				var e dbus.Error
				if !errors.As(err, &e) || e.Name != "org.freedesktop.DBus.Error.LimitsExceeded" {
					t.Fatal(err)
				}
				break
			}
			total++
		}
	}
	if total != 256 {
		t.Errorf("%d inhibitions", total)
	}
	for _, conn := range conns {
		conn.Close()
	}
	on := 0
	for range 2 * total {
		select {
		case s := <-p.host.said:
			if strings.HasPrefix(s, "on") {
				on++
			} else {
				on--
			}
		case <-time.After(patience):
			t.Fatal("not all have ended")
		}
	}
	if on != 0 {
		t.Errorf("%d are left", on)
	}
	conn := p.bus.Connect(t)
	if _, err := inhibit(conn, "x", "y"); err != nil {
		t.Error(err)
	}
}

func TestBusAndServiceEnd(t *testing.T) {
	p := newPlace(t)
	cookie, err := inhibit(p.bus.Connect(t), "x", "y")
	if err != nil {
		t.Fatal(err)
	}
	p.heard(fmt.Sprintf("on %d x: y", cookie))
	p.bus.Stop()
	p.heard(fmt.Sprintf("off %d", cookie))
	p.bus.Start()
	p.ready()
	if cookie, err = inhibit(p.bus.Connect(t), "x", "z"); err != nil {
		t.Fatal(err)
	}
	p.heard(fmt.Sprintf("on %d x: z", cookie))
	p.stop()
	p.heard(fmt.Sprintf("off %d", cookie))
}

// An answer of the portal.
type answer struct {
	Response uint32
	Results  map[string]dbus.Variant
	err      error
}

func (p *place) choose(conn *dbus.Conn, method, handle string, o map[string]dbus.Variant) <-chan answer {
	c := make(chan answer, 1)
	call := conn.Object("org.freedesktop.impl.portal.desktop.cros", "/org/freedesktop/portal/desktop").Go(
		"org.freedesktop.impl.portal.FileChooser."+method, 0, nil, dbus.ObjectPath(handle), "app", "", "A title", o)
	go func() {
		<-call.Done
		var a answer
		a.err = call.Store(&a.Response, &a.Results)
		c <- a
	}()
	return c
}

const handle = "/org/freedesktop/portal/desktop/request/1_1/a"

func TestChooseFiles(t *testing.T) {
	type pattern struct {
		Kind uint32
		Text string
	}
	type filter struct {
		Name     string
		Patterns []pattern
	}
	v := dbus.MakeVariant
	bytes := func(s string) dbus.Variant { return v([]byte(s + "\x00")) }
	p := newPlace(t)
	conn := p.bus.Connect(t)
	for name, c := range map[string]struct {
		method   string
		options  map[string]dbus.Variant
		want     *pb.SelectFileRequest
		answer   []string
		response uint32
		uris     []string
	}{
		"open": {"OpenFile", nil, &pb.SelectFileRequest{Type: "open-file"}, []string{"/home/u/a b"}, 0, []string{"file:///home/u/a%20b"}},
		"several": {"OpenFile", map[string]dbus.Variant{"multiple": v(true), "current_folder": bytes("/home/u")},
			&pb.SelectFileRequest{Type: "open-multi-file", DefaultPath: "/home/u"}, []string{"/a", "file:///b%20c", "relative"}, 0, []string{"file:///a", "file:///b%20c"}},
		"directory": {"OpenFile", map[string]dbus.Variant{"directory": v(true), "multiple": v(true)}, &pb.SelectFileRequest{Type: "folder"}, []string{"/d"}, 0, []string{"file:///d"}},
		"nothing":   {"OpenFile", nil, &pb.SelectFileRequest{Type: "open-file"}, []string{}, 1, nil},
		"failure":   {"OpenFile", nil, &pb.SelectFileRequest{Type: "open-file"}, nil, 2, nil},
		"filters": {"OpenFile", map[string]dbus.Variant{"filters": v([]filter{{"Images", []pattern{{0, "*.gif"}, {1, "image/*"}}}, {"Text", []pattern{{1, "text/plain"}}}})},
			&pb.SelectFileRequest{Type: "open-file", AllowedExtensions: "gif,jpg,png,txt"}, []string{}, 1, nil},
		"current filter": {"OpenFile", map[string]dbus.Variant{"filters": v([]filter{{"All", []pattern{{0, "*"}}}}), "current_filter": v(filter{"PNG", []pattern{{0, "*.png"}}})},
			&pb.SelectFileRequest{Type: "open-file", AllowedExtensions: "png"}, []string{}, 1, nil},
		"a filter of all": {"OpenFile", map[string]dbus.Variant{"filters": v([]filter{{"PNG", []pattern{{0, "*.png"}}}, {"All", []pattern{{0, "*"}}}})},
			&pb.SelectFileRequest{Type: "open-file"}, []string{}, 1, nil},
		"odd options": {"OpenFile", map[string]dbus.Variant{"filters": v("x"), "multiple": v("yes"), "directory": v(1.5), "current_folder": v("/text"), "current_filter": v([]string{"a"})},
			&pb.SelectFileRequest{Type: "open-file"}, []string{}, 1, nil},
		"save": {"SaveFile", map[string]dbus.Variant{"current_folder": bytes("/home/u/"), "current_name": v("a.txt")},
			&pb.SelectFileRequest{Type: "saveas-file", DefaultPath: "/home/u/a.txt"}, []string{"/home/u/b.txt"}, 0, []string{"file:///home/u/b.txt"}},
		"save a file": {"SaveFile", map[string]dbus.Variant{"current_folder": bytes("/x"), "current_name": v("y"), "current_file": bytes("/home/u/a.txt")},
			&pb.SelectFileRequest{Type: "saveas-file", DefaultPath: "/home/u/a.txt"}, []string{}, 1, nil},
		"save elsewhere": {"SaveFile", map[string]dbus.Variant{"current_folder": bytes("relative"), "current_name": v("../y")},
			&pb.SelectFileRequest{Type: "saveas-file"}, []string{}, 1, nil},
		"save files": {"SaveFiles", map[string]dbus.Variant{"files": v([][]byte{[]byte("a b\x00"), []byte("c\x00")})},
			&pb.SelectFileRequest{Type: "folder"}, []string{"/d"}, 0, []string{"file:///d/a%20b", "file:///d/c"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Title = "A title"
			got := p.choose(conn, c.method, handle, c.options)
			select {
			case req := <-p.host.asked:
				if diff := cmp.Diff(c.want.String(), req.String()); diff != "" {
					t.Error(diff)
				}
			case a := <-got:
				t.Fatal("an answer at once: ", a.err)
			}
			p.host.answers <- c.answer
			a := <-got
			if a.err != nil || a.Response != c.response {
				t.Fatalf("the response is %d, %v", a.Response, a.err)
			}
			var uris []string
			if v, ok := a.Results["uris"]; ok {
				uris = v.Value().([]string)
			}
			if diff := cmp.Diff(c.uris, uris); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, files := range map[string]any{"none": [][]byte{}, "path": [][]byte{[]byte("a/b\x00")}, "up": [][]byte{[]byte("..")}, "type": "a", "many": make([][]byte, 1000)} {
		if a := <-p.choose(conn, "SaveFiles", handle, map[string]dbus.Variant{"files": v(files)}); a.err == nil {
			t.Errorf("SaveFiles of %s is taken", name)
		}
	}
	if a := <-p.choose(conn, "OpenFile", "/elsewhere", nil); a.err == nil {
		t.Error("a handle elsewhere is taken")
	}
}

func TestChoicesEnd(t *testing.T) {
	p := newPlace(t)
	conn, other := p.bus.Connect(t), p.bus.Connect(t)
	gone := func() {
		t.Helper()
		select {
		case <-p.host.gone:
		case <-time.After(patience):
			t.Fatal("the host still asks")
		}
	}
	got := p.choose(conn, "OpenFile", handle, nil)
	<-p.host.asked
	if err := other.Object("org.freedesktop.impl.portal.desktop.cros", handle).Call("org.freedesktop.impl.portal.Request.Close", 0).Err; err != nil {
		t.Fatal(err)
	}
	gone()
	if a := <-got; a.err != nil || a.Response != 2 {
		t.Errorf("closed: %d, %v", a.Response, a.err)
	}
	p.choose(other, "OpenFile", handle, nil)
	<-p.host.asked
	other.Close()
	gone()

	// As many as there may be at once, one more, and the same handle again.
	for i := range 8 {
		p.choose(conn, "OpenFile", fmt.Sprintf("%s%d", handle, i), nil)
		<-p.host.asked
	}
	if a := <-p.choose(conn, "OpenFile", handle+"8", nil); a.err == nil {
		t.Error("a ninth choice")
	}
	p.stop()
	for range 8 {
		gone()
	}
}
