package bus

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// maxDialogs bounds the choices that a person is asked for at once.
const maxDialogs = 8

// What a portal's backend answers with.
const (
	chosen    uint32 = 0
	cancelled uint32 = 1
	ended     uint32 = 2
)

// chooser knows the dialogs that are open.
type chooser struct {
	log   *slog.Logger
	host  Host
	types func() map[string]string

	mu   sync.Mutex
	open map[dbus.ObjectPath]dialog
}

type dialog struct {
	sender string
	cancel context.CancelFunc
}

func newChooser(log *slog.Logger, host Host, types func() map[string]string) *chooser {
	return &chooser{log: log, host: host, types: types, open: map[dbus.ObjectPath]dialog{}}
}

// begin takes the place of a dialog; false when there is none.
func (c *chooser) begin(handle dbus.ObjectPath, d dialog) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, used := c.open[handle]; used || len(c.open) >= maxDialogs {
		return false
	}
	c.open[handle] = d
	return true
}

func (c *chooser) end(handle dbus.ObjectPath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, handle)
}

// close cancels the dialogs of a program that left.
func (c *chooser) close(sender string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.open {
		if d.sender == sender {
			d.cancel()
		}
	}
}

// cancel ends one; false when there is none.
func (c *chooser) cancel(handle dbus.ObjectPath) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, open := c.open[handle]
	if open {
		d.cancel()
	}
	return open
}

func (c *chooser) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.open {
		d.cancel()
	}
}

// chooserFaceOf is what the bus sees of it, on one connection.
type chooserFaceOf struct {
	chooser *chooser
	ctx     context.Context
	present func(name string) bool
}

type options map[string]dbus.Variant

// OpenFile has a person choose files or a directory that exist.
func (f chooserFaceOf) OpenFile(sender dbus.Sender, handle dbus.ObjectPath, _, _, title string, o map[string]dbus.Variant) (uint32, map[string]dbus.Variant, *dbus.Error) {
	req := &pb.SelectFileRequest{Type: "open-file", Title: short(title), DefaultPath: folder(o)}
	switch {
	case get[bool](o, "directory"):
		req.Type = "folder"
	case get[bool](o, "multiple"):
		req.Type = "open-multi-file"
	}
	if req.Type != "folder" {
		req.AllowedExtensions = extensions(o, f.chooser.types)
	}
	return f.ask(sender, handle, req, nil)
}

// SaveFile has a person choose where a file goes.
func (f chooserFaceOf) SaveFile(sender dbus.Sender, handle dbus.ObjectPath, _, _, title string, o map[string]dbus.Variant) (uint32, map[string]dbus.Variant, *dbus.Error) {
	req := &pb.SelectFileRequest{Type: "saveas-file", Title: short(title), DefaultPath: folder(o), AllowedExtensions: extensions(o, f.chooser.types)}
	if file := pathOf(o, "current_file"); file != "" {
		req.DefaultPath = file
	} else if name := short(get[string](o, "current_name")); name != "" && !strings.Contains(name, "/") {
		req.DefaultPath = strings.TrimSuffix(req.DefaultPath, "/")
		if req.DefaultPath != "" {
			req.DefaultPath += "/"
		}
		req.DefaultPath += name
	}
	return f.ask(sender, handle, req, nil)
}

// SaveFiles has a person choose the directory that files go to.
func (f chooserFaceOf) SaveFiles(sender dbus.Sender, handle dbus.ObjectPath, _, _, title string, o map[string]dbus.Variant) (uint32, map[string]dbus.Variant, *dbus.Error) {
	var names []string
	for _, raw := range get[[][]byte](o, "files") {
		name := strings.TrimRight(string(raw), "\x00")
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(names) >= maxNames {
			return ended, nil, failed("InvalidArgs", "files: %q is no name of a file, or there are more than %d", name, maxNames)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ended, nil, failed("InvalidArgs", "files: no names are given")
	}
	return f.ask(sender, handle, &pb.SelectFileRequest{Type: "folder", Title: short(title), DefaultPath: folder(o)}, names)
}

// ask has the host show a dialog. Close on the handle, and the program's
// leaving, end it.
func (f chooserFaceOf) ask(sender dbus.Sender, handle dbus.ObjectPath, req *pb.SelectFileRequest, names []string) (uint32, map[string]dbus.Variant, *dbus.Error) {
	none := map[string]dbus.Variant{}
	if !handle.IsValid() || !strings.HasPrefix(string(handle), portalPath+"/request/") {
		return ended, none, failed("InvalidArgs", "the handle %q is not beneath %s/request", short(string(handle)), portalPath)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	if !f.chooser.begin(handle, dialog{string(sender), cancel}) {
		return ended, none, failed("LimitsExceeded", "the handle is in use, or %d choices are open already", maxDialogs)
	}
	defer f.chooser.end(handle)
	if !f.present(string(sender)) {
		return ended, none, nil
	}
	resp, err := f.chooser.host.SelectFile(ctx, req)
	switch {
	case ctx.Err() != nil:
		return ended, none, nil
	case err != nil:
		f.chooser.log.Warn("the host let nobody choose a file", "err", err)
		return ended, none, nil
	}
	uris := uris(resp.GetFiles(), names)
	if len(uris) == 0 {
		return cancelled, none, nil
	}
	return chosen, map[string]dbus.Variant{"uris": dbus.MakeVariant(uris)}, nil
}

// requests are the dialogs that are open, each at its handle. godbus cannot
// export and unexport while it serves, so they are one subtree.
type requests struct{ chooser *chooser }

// Close ends the dialog at the handle.
func (r requests) Close(msg dbus.Message) *dbus.Error {
	handle, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	if !r.chooser.cancel(handle) {
		return failed("UnknownObject", "no choice is open at %q", short(string(handle)))
	}
	return nil
}

var chooserNode = &introspect.Node{Interfaces: []introspect.Interface{
	introspect.IntrospectData,
	{Name: chooserFace, Methods: []introspect.Method{
		{Name: "OpenFile", Args: chooserArgs}, {Name: "SaveFile", Args: chooserArgs}, {Name: "SaveFiles", Args: chooserArgs},
	}},
}}

var chooserArgs = []introspect.Arg{
	{Name: "handle", Type: "o", Direction: "in"}, {Name: "app_id", Type: "s", Direction: "in"},
	{Name: "parent_window", Type: "s", Direction: "in"}, {Name: "title", Type: "s", Direction: "in"},
	{Name: "options", Type: "a{sv}", Direction: "in"},
	{Name: "response", Type: "u", Direction: "out"}, {Name: "results", Type: "a{sv}", Direction: "out"},
}
