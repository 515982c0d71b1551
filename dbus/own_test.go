package dbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
)

// oneFile is a ConnectVsock handler that returns a pipe with the port in it.
func oneFile(t *testing.T) func(context.Context, policy.Subject, string, uint32) (*os.File, error) {
	return func(_ context.Context, _ policy.Subject, name string, port uint32) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		fmt.Fprintf(w, "%s:%d", name, port)
		return r, nil
	}
}

// withoutDescriptors returns a client whose connection takes no descriptors,
// as busctl's.
func withoutDescriptors(t *testing.T, bus *dbustest.Bus) *dbus.Conn {
	t.Helper()
	name, err := socketName(bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	sock, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	// Hidden behind another type, the socket is any stream to godbus.
	conn, err := dbus.NewConn(struct{ io.ReadWriteCloser }{sock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := errors.Join(conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(os.Geteuid()))}), conn.Hello()); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestConnectVsock(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{connectVsock: oneFile(t)}, Options{})
	c := bus.Connect(t)
	results, err := invoke(t, c, Concierge1Name, "ConnectVsock", "vm", "", uint32(7))
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(results[0].(dbus.UnixFD)), "stream")
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != "vm:7" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestConfigureVm(t *testing.T) {
	bus := dbustest.Lax(t)
	type configured struct {
		Name     string
		Owner    policy.Owner
		Settings VMSettings
	}
	calls := make(chan configured, 1)
	serve(t, bus, &handler{configureVm: func(_ context.Context, s policy.Subject, name string, settings VMSettings) error {
		calls <- configured{name, s.Owner, settings}
		return nil
	}}, Options{})
	c := bus.Connect(t)
	memory, cpus, network := uint64(1024), uint32(2), "none"
	owner := policy.Owner{UID: uint32(os.Geteuid()), Label: "abc", Word: "abc"}
	for _, test := range []struct {
		name     string
		settings map[string]dbus.Variant
		want     VMSettings
	}{
		{"nothing", map[string]dbus.Variant{}, VMSettings{}},
		{"one", map[string]dbus.Variant{"cpus": dbus.MakeVariant(cpus)}, VMSettings{CPUs: &cpus}},
		{"all", map[string]dbus.Variant{
			"cpus": dbus.MakeVariant(cpus), "memory": dbus.MakeVariant(memory), "network": dbus.MakeVariant(network),
		}, VMSettings{MemoryMiB: &memory, CPUs: &cpus, Network: &network}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := invoke(t, c, Concierge1Name, "ConfigureVm", "vm", "abc", test.settings); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(configured{"vm", owner, test.want}, <-calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type namedError string

func (e namedError) Error() string        { return "it is gone" }
func (e namedError) BusErrorName() string { return string(e) }

func TestErrorsOfOurOwnInterface(t *testing.T) {
	bus := dbustest.Lax(t)
	fail := make(chan error, 1)
	serve(t, bus, &handler{connectVsock: func(context.Context, policy.Subject, string, uint32) (*os.File, error) {
		return nil, <-fail
	}}, Options{})
	c := bus.Connect(t)
	for _, test := range []struct {
		name, owner string
		err         error
		want        string
	}{
		{"any error", "", errors.New("no"), ErrorFailed},
		{"a named error", "", fmt.Errorf("can't connect: %w", namedError(ErrorNotRunning)), ErrorNotRunning},
		{"a name that is none", "", namedError(ErrorPrefix + "Not Running"), ErrorFailed},
		{"a name of somebody else's", "", namedError("org.freedesktop.DBus.Error.NoReply"), ErrorFailed},
		{"a VM name that is none", "", policy.CheckName("a/b"), ErrorInvalidArgument},
		{"an owner that is none", "a/b", nil, ErrorInvalidArgument},
		{"a denial", "", fmt.Errorf("can't: %w", policy.ErrDenied), errAccessDenied},
		{"a handler that returns nothing", "", nil, errFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.owner == "" {
				fail <- test.err
			}
			_, err := invoke(t, c, Concierge1Name, "ConnectVsock", "vm", test.owner, uint32(1))
			wantError(t, err, test.want)
		})
	}
}
