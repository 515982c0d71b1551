package packagekit

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>
`

// A bus is a dbus-daemon in the place of the container's system bus.
type bus struct {
	t    *testing.T
	cmd  *exec.Cmd
	once sync.Once
}

func startBus(t *testing.T) *bus {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, filepath.Join(dir, "s")), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bus{t: t, cmd: exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address=1")}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon said no address: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
	return b
}

func (b *bus) stop() {
	b.once.Do(func() {
		b.cmd.Process.Kill()
		b.cmd.Wait()
	})
}

func (b *bus) connect() *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// A fake is on the bus in PackageKit's place, for what the real one does not do
// when it is told to: to die, to hang, to talk nonsense. Containers have the
// real one, in test/containers.
type fake struct {
	t      *testing.T
	conn   *dbus.Conn
	do     func(tr *fakeTransaction, method string, args []any) *dbus.Error
	cancel chan struct{}
	die    chan struct{}

	mu    sync.Mutex
	n     int
	begin func(n int) *dbus.Error // of transaction n
}

type fakeTransaction struct {
	*fake
	path   dbus.ObjectPath
	client dbus.Sender
}

func (b *bus) fake(do func(tr *fakeTransaction, method string, args []any) *dbus.Error) *fake {
	b.t.Helper()
	f := &fake{t: b.t, conn: b.connect(), do: do, cancel: make(chan struct{}, 16), die: make(chan struct{}, 1)}
	if err := f.conn.ExportMethodTable(map[string]any{"CreateTransaction": f.create}, daemonPath, busName); err != nil {
		b.t.Fatal(err)
	}
	if _, err := f.conn.RequestName(busName, dbus.NameFlagDoNotQueue); err != nil {
		b.t.Fatal(err)
	}
	return f
}

func (f *fake) beginWith(begin func(n int) *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin = begin
}

func (f *fake) create(client dbus.Sender) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	f.n++
	n, begin := f.n, f.begin
	f.mu.Unlock()
	if begin != nil {
		if err := begin(n); err != nil {
			return "/", err
		}
	}
	tr := &fakeTransaction{f, dbus.ObjectPath(fmt.Sprintf("/%d_fake", n)), client}
	err := f.conn.ExportMethodTable(map[string]any{
		"SetHints":        func([]string) *dbus.Error { return nil },
		"Cancel":          func() *dbus.Error { f.cancel <- struct{}{}; return nil },
		"GetDetailsLocal": func(files []string) *dbus.Error { return tr.do(tr, "GetDetailsLocal", []any{files}) },
		"GetDetails":      func(ids []string) *dbus.Error { return tr.do(tr, "GetDetails", []any{ids}) },
		"Resolve":         func(_ uint64, names []string) *dbus.Error { return tr.do(tr, "Resolve", []any{names}) },
		"SearchFiles":     func(_ uint64, files []string) *dbus.Error { return tr.do(tr, "SearchFiles", []any{files}) },
		"InstallFiles":    func(flags uint64, files []string) *dbus.Error { return tr.do(tr, "InstallFiles", []any{flags, files}) },
		"InstallPackages": func(flags uint64, ids []string) *dbus.Error { return tr.do(tr, "InstallPackages", []any{flags, ids}) },
		"RemovePackages": func(flags uint64, ids []string, deps, auto bool) *dbus.Error {
			return tr.do(tr, "RemovePackages", []any{flags, ids, deps, auto})
		},
	}, tr.path, transactionIface)
	if err != nil {
		return "/", dbus.MakeFailedError(err)
	}
	return tr.path, nil
}

func (tr *fakeTransaction) emit(member string, body ...any) {
	tr.conn.Emit(tr.path, transactionIface+"."+member, body...)
}

func (tr *fakeTransaction) set(name string, value uint32) {
	tr.conn.Emit(tr.path, propertiesIface+".PropertiesChanged", transactionIface,
		map[string]dbus.Variant{name: dbus.MakeVariant(value)}, []string{})
}

func (tr *fakeTransaction) finish(exit uint32) { tr.emit("Finished", exit, uint32(1)) }

// A recorder is the Reporter of tests.
type recorder struct {
	mu   sync.Mutex
	seen []string
	done chan error
}

func newRecorder() *recorder { return &recorder{done: make(chan error, 16)} }

func (r *recorder) Progress(op Operation, phase Phase, percent uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, fmt.Sprintf("%s%d:%d", op.UUID, phase, percent))
}

func (r *recorder) Done(_ Operation, err error) { r.done <- err }

func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.seen, " ")
	r.seen = nil
	return s
}

// end waits for the one final report.
func (r *recorder) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		t.Fatal("no final report")
		return nil
	}
}

func operations(t *testing.T, client *Client) (*Operations, *recorder) {
	r := newRecorder()
	o := NewOperations(client, r, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		o.Close()
		select {
		case err := <-r.done:
			t.Errorf("a final report too much: %v", err)
		default:
		}
	})
	return o, r
}
