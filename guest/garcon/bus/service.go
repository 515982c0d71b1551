package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// Names on the bus.
const (
	screenSaverName = "org.freedesktop.ScreenSaver"
	portalName      = "org.freedesktop.impl.portal.desktop.cros"
	portalPath      = "/org/freedesktop/portal/desktop"
	chooserFace     = "org.freedesktop.impl.portal.FileChooser"
	requestFace     = "org.freedesktop.impl.portal.Request"
)

// screenSaverPaths are where programs look; the second is older.
var screenSaverPaths = []dbus.ObjectPath{"/org/freedesktop/ScreenSaver", "/ScreenSaver"}

const (
	retryMin = time.Second
	retryMax = 30 * time.Second
	// farewell is how long the host has to hear, at the end, that the screen
	// may go dark.
	farewell = 2 * time.Second
	// maxText bounds what is passed on of a title or a reason, in bytes.
	maxText = 1024
)

// A Host does what is asked for here.
type Host interface {
	InhibitScreensaver(context.Context, *pb.InhibitScreensaverInfo) error
	UninhibitScreensaver(context.Context, *pb.UninhibitScreensaverInfo) error
	SelectFile(context.Context, *pb.SelectFileRequest) (*pb.SelectFileResponse, error)
}

// Config is what a Service needs.
type Config struct {
	Log  *slog.Logger
	Host Host
	// Address of the bus.
	Address string
	// Types are the MIME types of extensions, for filters of files.
	Types func() map[string]string
}

// A Service answers on the session's bus.
type Service struct {
	log     *slog.Logger
	host    Host
	address string
	types   func() map[string]string

	saver  *saver
	picker *chooser
}

// New returns a Service that does nothing until Run.
func New(c Config) *Service {
	s := &Service{log: c.Log, host: c.Host, address: c.Address, types: c.Types}
	if s.types == nil {
		s.types = func() map[string]string { return nil }
	}
	s.saver = newSaver(c.Log, c.Host)
	s.picker = newChooser(c.Log, c.Host, s.types)
	return s
}

// Run serves until ctx is done, on one bus after the other.
func (s *Service) Run(ctx context.Context) error {
	// What ends with the service is still to be told.
	telling, stop := context.WithCancel(context.WithoutCancel(ctx))
	var teller sync.WaitGroup
	teller.Go(func() { s.saver.tell(telling) })
	defer teller.Wait()
	defer stop()
	pause := retryMin
	for {
		begun := time.Now()
		err := s.serve(ctx)
		level := slog.LevelDebug // it is known already
		if pause == retryMin {
			level = slog.LevelWarn
		}
		if ctx.Err() != nil {
			s.saver.drain(farewell)
			return nil
		}
		if time.Since(begun) > retryMax {
			pause, level = retryMin, slog.LevelWarn
		}
		s.log.Log(ctx, level, "no session bus: programs cannot keep the screen on or choose files of the host", "err", err, "again", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		pause = min(2*pause, retryMax)
	}
}

// serve answers on one connection until it or ctx ends. Nothing that hangs on
// the connection is left then.
func (s *Service) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer s.picker.closeAll()
	defer s.saver.releaseAll()
	defer conn.Close()
	left := make(chan *dbus.Signal, 64)
	conn.Signal(left)
	// Only who leaves: the third argument, the new owner, is empty.
	if err := conn.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"),
		dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchArg(2, "")); err != nil {
		return fmt.Errorf("follow who leaves the bus: %w", err)
	}
	if err := s.export(ctx, conn); err != nil {
		return err
	}
	for _, name := range []string{screenSaverName, portalName} {
		// Where another has the name, we wait in the queue.
		if _, err := conn.RequestName(name, 0); err != nil {
			return fmt.Errorf("take the name %s: %w", name, err)
		}
	}
	s.log.Info("on the session's bus")
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-conn.Context().Done():
			return errors.New("the connection was lost")
		case sig, ok := <-left:
			if !ok {
				return errors.New("the connection was lost")
			}
			if name, gone := whoLeft(sig); gone {
				s.saver.release(name)
				s.picker.close(name)
			}
		}
	}
}

func (s *Service) connect(ctx context.Context) (*dbus.Conn, error) {
	return dbus.Connect(s.address, dbus.WithContext(ctx))
}

// SessionAddress is where the session's bus is. Nothing starts one: without a
// session there are no programs that would use it.
func SessionAddress(getenv func(string) string) string {
	return cmp.Or(getenv("DBUS_SESSION_BUS_ADDRESS"), "unix:path="+getenv("XDG_RUNTIME_DIR")+"/bus")
}

func (s *Service) export(ctx context.Context, conn *dbus.Conn) error {
	present := func(name string) bool {
		var there bool
		err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&there)
		return err == nil && there
	}
	for _, path := range screenSaverPaths {
		if err := conn.Export(saverFace{s.saver, present}, path, screenSaverName); err != nil {
			return err
		}
		if err := conn.Export(introspect.NewIntrospectable(saverNode), path, "org.freedesktop.DBus.Introspectable"); err != nil {
			return err
		}
	}
	if err := conn.Export(chooserFaceOf{s.picker, ctx, present}, portalPath, chooserFace); err != nil {
		return err
	}
	if err := conn.ExportSubtree(requests{s.picker}, portalPath+"/request", requestFace); err != nil {
		return err
	}
	return conn.Export(introspect.NewIntrospectable(chooserNode), portalPath, "org.freedesktop.DBus.Introspectable")
}

// whoLeft reads NameOwnerChanged.
func whoLeft(sig *dbus.Signal) (name string, gone bool) {
	if sig.Name != "org.freedesktop.DBus.NameOwnerChanged" || len(sig.Body) != 3 {
		return "", false
	}
	name, _ = sig.Body[0].(string)
	owner, ok := sig.Body[2].(string)
	return name, ok && owner == "" && strings.HasPrefix(name, ":")
}

// short is text that a message to the host can carry.
func short(text string) string {
	text = text[:min(len(text), maxText)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

func failed(name, format string, args ...any) *dbus.Error {
	return dbus.NewError("org.freedesktop.DBus.Error."+cmp.Or(name, "Failed"), []any{fmt.Sprintf(format, args...)})
}
