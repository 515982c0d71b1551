package dbus

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
)

func TestOpenVmLogs(t *testing.T) {
	bus := dbustest.Lax(t)
	asked := make(chan LogOptions, 1)
	serve(t, bus, &handler{openVmLogs: func(_ context.Context, _ policy.Subject, name string, o LogOptions) (*os.File, error) {
		asked <- o
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		io.WriteString(w, "the log of "+name)
		return r, nil
	}}, Options{})
	c := bus.Connect(t)
	for name, test := range map[string]struct {
		options map[string]dbus.Variant
		want    LogOptions
	}{
		"none": {map[string]dbus.Variant{}, LogOptions{}},
		"all": {map[string]dbus.Variant{"follow": dbus.MakeVariant(true), "lines": dbus.MakeVariant(uint32(7))},
			LogOptions{Follow: true, Lines: 7}},
		"zeros": {map[string]dbus.Variant{"follow": dbus.MakeVariant(false), "lines": dbus.MakeVariant(uint32(0))}, LogOptions{}},
	} {
		results, err := invoke(t, c, Concierge1Name, "OpenVmLogs", "vm", "", test.options)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f := os.NewFile(uintptr(results[0].(dbus.UnixFD)), "log")
		if got, err := io.ReadAll(f); err != nil || string(got) != "the log of vm" {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
		f.Close()
		if got := <-asked; got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	for name, options := range map[string]map[string]dbus.Variant{
		"an unknown option":  {"colour": dbus.MakeVariant("red")},
		"a number of yes":    {"lines": dbus.MakeVariant(true)},
		"following a number": {"follow": dbus.MakeVariant(uint32(1))},
		"a wide number":      {"lines": dbus.MakeVariant(uint64(1))},
	} {
		_, err := invoke(t, c, Concierge1Name, "OpenVmLogs", "vm", "", options)
		if got := errorName(err); got != errInvalidArgs {
			t.Errorf("%s: %v", name, err)
		}
	}
}
