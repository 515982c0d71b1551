package dbus

import (
	"context"
	"os"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	"github.com/auberge-vm/auberge/policy"
)

const (
	introspectableName = "org.freedesktop.DBus.Introspectable"
	peerName           = "org.freedesktop.DBus.Peer"
	propertiesName     = "org.freedesktop.DBus.Properties"
)

// A standardInterface is one that every object has. Its methods tell nothing
// about anybody's VMs and are answered without asking who calls.
type standardInterface struct {
	described introspect.Interface
	methods   map[string]endpoint
}

// standardEndpoint answers the calls of a standard method.
type standardEndpoint struct {
	in     []Arg
	answer func(args []any) ([]any, error)
}

// asks: what it tells is the same for everybody.
func (e *standardEndpoint) asks() rule { return rule{right: policy.RightAny} }

func (e *standardEndpoint) serve(_ context.Context, c *call) (body, error) {
	var args []any
	if e.in != nil {
		var err error
		if args, err = readArgs(c.message, e.in); err != nil {
			return body{}, newError(errInvalidArgs, "%v", err)
		}
	}
	results, err := e.answer(args)
	if err != nil {
		return body{}, err
	}
	return plainBody(results...)
}

func standardInterfaces(o *object) []standardInterface {
	return []standardInterface{
		{introspect.IntrospectData, map[string]endpoint{
			"Introspect": &standardEndpoint{[]Arg{}, func([]any) ([]any, error) { return []any{o.xml}, nil }},
		}},
		{introspect.PeerData, map[string]endpoint{
			"Ping":         &standardEndpoint{[]Arg{}, func([]any) ([]any, error) { return nil, nil }},
			"GetMachineId": &standardEndpoint{[]Arg{}, machineID},
		}},
		{propertiesData, map[string]endpoint{
			"Get":    &standardEndpoint{[]Arg{{"interface", "s"}, {"name", "s"}}, o.property},
			"GetAll": &standardEndpoint{[]Arg{{"interface", "s"}}, o.properties},
			// Refused unread: there is nothing that could be set, whatever the
			// arguments are.
			"Set": &standardEndpoint{nil, readOnly},
		}},
	}
}

var propertiesData = introspect.Interface{
	Name: propertiesName,
	Methods: []introspect.Method{
		{Name: "Get", Args: []introspect.Arg{
			{Name: "interface", Type: "s", Direction: "in"},
			{Name: "name", Type: "s", Direction: "in"},
			{Name: "value", Type: "v", Direction: "out"},
		}},
		{Name: "GetAll", Args: []introspect.Arg{
			{Name: "interface", Type: "s", Direction: "in"},
			{Name: "properties", Type: "a{sv}", Direction: "out"},
		}},
		{Name: "Set", Args: []introspect.Arg{
			{Name: "interface", Type: "s", Direction: "in"},
			{Name: "name", Type: "s", Direction: "in"},
			{Name: "value", Type: "v", Direction: "in"},
		}},
	},
}

func (o *object) property(args []any) ([]any, error) {
	if err := o.known(args[0].(string)); err != nil {
		return nil, err
	}
	return nil, newError(errUnknownProperty, "there is no property %q", args[1])
}

func (o *object) properties(args []any) ([]any, error) {
	if err := o.known(args[0].(string)); err != nil {
		return nil, err
	}
	return []any{map[string]dbus.Variant{}}, nil
}

func readOnly([]any) ([]any, error) {
	return nil, newError(errPropertyReadOnly, "there is no property that can be set")
}

// known refuses an interface that the object does not have. The empty name
// means all of them.
func (o *object) known(iface string) error {
	if _, ok := o.interfaces[iface]; !ok && iface != "" {
		return newError(errUnknownInterface, "there is no interface %q", iface)
	}
	return nil
}

func machineID([]any) ([]any, error) {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if id, err := os.ReadFile(path); err == nil {
			return []any{strings.TrimSpace(string(id))}, nil
		}
	}
	return nil, newError(errFailed, "this machine has no id")
}
