package bus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/auberge-vm/auberge/client/bus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBus runs a private dbus-daemon and returns the path of its socket.
func startBus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, path)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("dbus-daemon, which the tests need: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return path
}

// flags tells with which flags it was called.
type flags struct{}

func (flags) Get(msg dbus.Message, add byte) (byte, *dbus.Error) { return byte(msg.Flags) + add, nil }

// The service learns that the user may be asked for a password.
func TestCall(t *testing.T) {
	path := startBus(t)
	conns := make([]*dbus.Conn, 2)
	for i := range conns {
		c, err := bus.Connect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	if err := conns[1].Export(flags{}, "/x", "org.example.Flags"); err != nil {
		t.Fatal(err)
	}
	var got byte
	call := bus.Call(t.Context(), conns[0], conns[1].Names()[0], "/x", "org.example.Flags", "Get", byte(32))
	if err := call.Store(&got); err != nil || got != 32+byte(dbus.FlagAllowInteractiveAuthorization) {
		t.Errorf("flags %d, %v", got, err)
	}
	if err := bus.Call(t.Context(), conns[0], conns[1].Names()[0], "/x", "org.example.Flags", "Nothing").Err; err == nil {
		t.Error("a method that is not there has answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bus.Call(ctx, conns[0], conns[1].Names()[0], "/x", "org.example.Flags", "Get", byte(1)).Err; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: %v", err)
	}
}

func TestConnect(t *testing.T) {
	path := startBus(t)
	runtime := filepath.Dir(path)
	for _, tc := range []struct {
		name, address string
		env           map[string]string
	}{
		{"by address", "unix:path=" + path, nil},
		{"by path", path, nil},
		{"system bus from the environment", "system", map[string]string{"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + path}},
		{"system bus by default", "", map[string]string{"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + path}},
		{"session bus from the environment", "session", map[string]string{"DBUS_SESSION_BUS_ADDRESS": "unix:path=" + path}},
		{"session bus of the runtime directory", "session", map[string]string{"DBUS_SESSION_BUS_ADDRESS": "", "XDG_RUNTIME_DIR": runtime}},
		{"second of two addresses", "unix:path=/no/such/bus;unix:path=" + path, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			ctx, cancel := context.WithCancel(t.Context())
			conn, err := bus.Connect(ctx, tc.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			cancel() // which must not end the connection
			var id string
			if err := conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Store(&id); err != nil || id == "" {
				t.Errorf("GetId: %q, %v", id, err)
			}
		})
	}
}

func TestConnectFails(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/system")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	t.Setenv("XDG_RUNTIME_DIR", "")
	for _, tc := range []struct {
		address string
		want    []string
	}{
		{"system", []string{"the system bus", "unix:path=/no/such/system", "no such file", "dbus-daemon running"}},
		{"session", []string{"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "--bus"}},
		{"/no/such/bus", []string{"the bus at unix:path=/no/such/bus", "is there a bus"}},
		{"nonsense", []string{"--bus nonsense", "system, session or an address"}},
		{"ftp:host=x", []string{"ftp:host=x", "transport"}},
	} {
		conn, err := bus.Connect(t.Context(), tc.address)
		if err == nil {
			conn.Close()
			t.Errorf("%q: connected", tc.address)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %q does not say %q", tc.address, err, want)
			}
		}
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute")
	l, err := net.Listen("unix", path) // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user changed their mind")
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			accepted <- conn
		}
		cancel(why)
	}()
	if _, err := bus.Connect(ctx, path); !errors.Is(err, why) {
		t.Errorf("Connect: %v, want %v", err, why)
	}
	(<-accepted).Close()
}
