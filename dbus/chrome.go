package dbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/appspb"
)

// What a user's desktop has on the bus for the applications of VMs, as Chrome
// has on ChromeOS.
const (
	VMApplicationsName      = "org.chromium.VmApplicationsService"
	VMApplicationsPath      = "/org/chromium/VmApplicationsService"
	VMApplicationsInterface = "org.chromium.VmApplicationsService"
	URLHandlerName          = "org.chromium.UrlHandlerService"
	URLHandlerPath          = "/org/chromium/UrlHandlerService"
	URLHandlerInterface     = "org.chromium.UrlHandlerServiceInterface"
)

const (
	// desktopTimeout is how long a desktop may take to say that it has heard.
	desktopTimeout = 10 * time.Second
	// maxDesktopCalls, with polkit's questions and dialogs, is within the 128
	// open calls that the bus allows a connection. A desktop that says nothing
	// holds up its own user's VMs only.
	maxDesktopCalls, maxUserDesktopCalls, maxUserDesktopWaiting = 24, 2, 64
	// maxDesktopOwners bounds how much of a name's queue is looked at.
	maxDesktopOwners = 1024
	// maxURL is the longest address that is handed on, in bytes.
	maxURL = 64 << 10
)

// ErrNoDesktop means that no program of the user's takes such calls.
var ErrNoDesktop = errors.New("the user has no desktop on the bus that takes this")

// A Desktop is what VMs see of their users' desktops. There may be one for each
// user at a time: on ChromeOS, Chrome owns the names; here the owner is whoever
// of the name's primary and queued owners is the VM's user, the first in the
// queue. Nobody else hears anything: where the user has none, calls end with
// ErrNoDesktop.
//
// Calls come from the connection that has the service's name.
type Desktop struct {
	server *Server
	turns  *turns
}

// NewDesktop makes one that speaks over a server's connection.
func NewDesktop(s *Server) *Desktop {
	return &Desktop{server: s, turns: newTurns(maxDesktopCalls, maxUserDesktopCalls, maxUserDesktopWaiting)}
}

// UpdateApplicationList tells which applications a container has.
func (d *Desktop) UpdateApplicationList(ctx context.Context, owner uint32, list *appspb.ApplicationList) error {
	return d.applications(ctx, owner, "UpdateApplicationList", list)
}

// UpdateMimeTypes tells which types a container has for names of files.
func (d *Desktop) UpdateMimeTypes(ctx context.Context, owner uint32, types *appspb.MimeTypes) error {
	return d.applications(ctx, owner, "UpdateMimeTypes", types)
}

// LaunchTerminal asks for a terminal in a container.
func (d *Desktop) LaunchTerminal(ctx context.Context, owner uint32, params *appspb.TerminalParams) error {
	return d.applications(ctx, owner, "LaunchTerminal", params)
}

// SelectFile asks for a dialog in which a file is chosen; the answer comes as a
// call of FileSelected.
func (d *Desktop) SelectFile(ctx context.Context, owner uint32, req *appspb.SelectFileRequest) error {
	return d.applications(ctx, owner, "SelectFile", req)
}

// OpenUrl asks for an address to be shown.
func (d *Desktop) OpenUrl(ctx context.Context, owner uint32, url string) error {
	// The bus drops who sends it a string that is none.
	if len(url) > maxURL || !utf8.ValidString(url) || strings.ContainsRune(url, 0) {
		return fmt.Errorf("open an address of %d bytes: it is too long, or no text", len(url))
	}
	b, err := plainBody(url)
	if err != nil {
		return err
	}
	return d.call(ctx, owner, URLHandlerName, &outgoing{path: URLHandlerPath, iface: URLHandlerInterface, member: "OpenUrl", body: b})
}

func (d *Desktop) applications(ctx context.Context, owner uint32, member string, msg proto.Message) error {
	data, err := proto.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode %s: %w", member, err)
	}
	return d.call(ctx, owner, VMApplicationsName, &outgoing{
		path: VMApplicationsPath, iface: VMApplicationsInterface, member: member, body: payloadBody(data)})
}

// call sends a call to the user's owner of a name, if there is one, and waits
// for the answer.
func (d *Desktop) call(ctx context.Context, owner uint32, name string, o *outgoing) error {
	sess := d.server.current.Load()
	if sess == nil {
		return ErrNoDesktop
	}
	ctx, cancel := context.WithTimeoutCause(ctx, desktopTimeout, fmt.Errorf("the desktop took more than %v", desktopTimeout))
	defer cancel()
	release, err := d.turns.wait(ctx, owner)
	if err != nil {
		return fmt.Errorf("call %s of user %d: %w", o.member, owner, err)
	}
	defer release()
	to, err := sess.ownerFor(ctx, name, owner)
	if err == nil {
		// A unique name cannot be started; the flag says that nothing is to be.
		o.typ, o.flags, o.destination = typeCall, flagNoAutoStart, to
		err = sess.ask(ctx, o)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errClosed), gone(err):
		err = ErrNoDesktop
	}
	return fmt.Errorf("call %s of user %d: %w", o.member, owner, err)
}

// desktopAppeared tells whoever wants to know that a connection has the name.
func (s *session) desktopAppeared(owner string) {
	f := s.server.opts.DesktopAppeared
	if f == nil {
		return
	}
	p := s.peers.meet(s.ctx, owner)
	s.peers.start(func() {
		if c, err := p.identity(s.ctx); err == nil {
			f(p.ctx, c.UID)
		}
	})
}

// ask sends a call whose answer says nothing.
func (s *session) ask(ctx context.Context, o *outgoing) error {
	m, err := s.link.call(ctx, o)
	if err != nil {
		return err
	}
	defer m.closeFDs()
	if m.typ == typeError {
		// Not the bus's: its text is not looked at.
		return &callError{name: callerText(m.errorName), text: "is the answer"}
	}
	return nil
}

// ownerFor finds the first of a name's owners, those included that wait for it,
// who is the given user. Who waits is not announced, so it is asked each time.
func (s *session) ownerFor(ctx context.Context, name string, uid uint32) (string, error) {
	var owners []string
	err := s.link.driver(ctx, "ListQueuedOwners", []any{name}, &owners)
	if err != nil {
		return "", err
	}
	for _, owner := range owners[:min(len(owners), maxDesktopOwners)] {
		// Somebody who has left in the meantime is nobody's desktop.
		c, err := s.peers.meet(s.ctx, owner).identity(ctx)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err == nil && c.UID == uid {
			return owner, nil
		}
	}
	return "", ErrNoDesktop
}
