package dbustest

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	logindName  = "org.freedesktop.login1"
	logindPath  = dbus.ObjectPath("/org/freedesktop/login1")
	logindIface = logindName + ".Manager"
)

// A Logind is a fake of systemd's login manager: the real one runs on no
// private bus, and a test must not send a machine to sleep. It hands out
// inhibitors, has the properties of which we read, and says what the test
// wants said.
type Logind struct {
	// Inhibited gets each inhibitor that is handed out.
	Inhibited chan *Inhibitor

	t     testing.TB
	conn  *dbus.Conn
	props *prop.Properties
}

// An Inhibitor is what somebody has the login manager wait for.
type Inhibitor struct {
	What, Who, Why, Mode string

	r, w *os.File
	once sync.Once
}

// NewLogind puts a fake login manager on the bus that conn is a connection to.
// delay is how long it would wait. It ends with the connection.
func NewLogind(t testing.TB, conn *dbus.Conn, delay time.Duration) *Logind {
	t.Helper()
	l := &Logind{t: t, conn: conn, Inhibited: make(chan *Inhibitor, 100)}
	if err := conn.ExportMethodTable(map[string]any{"Inhibit": l.inhibit}, logindPath, logindIface); err != nil {
		t.Fatal(err)
	}
	var err error
	l.props, err = prop.Export(conn, logindPath, prop.Map{logindIface: {
		"InhibitDelayMaxUSec":  {Value: uint64(delay / time.Microsecond), Emit: prop.EmitFalse},
		"PreparingForSleep":    {Value: false, Emit: prop.EmitFalse},
		"PreparingForShutdown": {Value: false, Emit: prop.EmitFalse},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Appear takes the login manager's name, Vanish gives it back.
func (l *Logind) Appear() {
	l.t.Helper()
	if reply, err := l.conn.RequestName(logindName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		l.t.Fatalf("take the name of the login manager: %v, %v", reply, err)
	}
}

func (l *Logind) Vanish() {
	l.t.Helper()
	if _, err := l.conn.ReleaseName(logindName); err != nil {
		l.t.Fatal(err)
	}
}

func (l *Logind) inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	l.Inhibited <- &Inhibitor{What: what, Who: who, Why: why, Mode: mode, r: r, w: w}
	return dbus.UnixFD(w.Fd()), nil
}

// AwaitLock waits for an inhibitor of something.
func (l *Logind) AwaitLock(what string, patience time.Duration) *Inhibitor {
	l.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case i := <-l.Inhibited:
			if i.What == what {
				return i
			}
		case <-deadline:
			l.t.Fatalf("nobody inhibits %s", what)
		}
	}
}

// AwaitRelease waits until whoever has the inhibitor gives it up. It must have
// arrived there.
func (i *Inhibitor) AwaitRelease(t testing.TB, patience time.Duration) {
	t.Helper()
	i.once.Do(func() { i.w.Close() })
	if err := i.r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := i.r.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
		t.Fatalf("the inhibitor of %s is not released: %v", i.What, err)
	}
}

// Held says whether somebody has the inhibitor. It must have arrived there.
func (i *Inhibitor) Held() bool {
	i.once.Do(func() { i.w.Close() })
	i.r.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := i.r.Read(make([]byte, 1))
	return os.IsTimeout(err)
}

// PrepareForSleep says that the machine is about to sleep, or is awake.
func (l *Logind) PrepareForSleep(about bool) {
	l.t.Helper()
	l.say("PreparingForSleep", "PrepareForSleep", about)
}

// PrepareForShutdown says that the machine is about to shut down, or not.
func (l *Logind) PrepareForShutdown(about bool) {
	l.t.Helper()
	l.say("PreparingForShutdown", "PrepareForShutdown", about)
}

func (l *Logind) say(property, signal string, about bool) {
	l.t.Helper()
	l.Set(property, about)
	if err := l.conn.Emit(logindPath, logindIface+"."+signal, about); err != nil {
		l.t.Fatal(err)
	}
}

// Set changes a property and tells nobody.
func (l *Logind) Set(property string, value any) { l.props.SetMust(logindIface, property, value) }

// UserRemoved says that a user's last session has ended.
func (l *Logind) UserRemoved(uid uint32) {
	l.t.Helper()
	if err := l.conn.Emit(logindPath, logindIface+".UserRemoved", uid, dbus.ObjectPath("/org/freedesktop/login1/user/_x")); err != nil {
		l.t.Fatal(err)
	}
}
