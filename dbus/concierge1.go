package dbus

import (
	"context"
	"fmt"
	"os"

	"github.com/auberge-vm/auberge/policy"
)

// Concierge1Name is our own interface of vm_concierge.
const Concierge1Name = "io.github.auberge_vm.Concierge1"

// VMSettings are what ConfigureVm sets; nil leaves a setting as it is. Values
// are the caller's and not checked.
type VMSettings struct {
	MemoryMiB *uint64
	CPUs      *uint32
	// Network is "none", "restricted" or "user".
	Network *string
}

// A Concierge1 handles the methods of io.github.auberge_vm.Concierge1. The
// subject's right is checked before. An error that wraps a [NamedError] has
// that name on the bus, every other one ErrorFailed.
type Concierge1 interface {
	// ConnectVsock returns a stream to a port of the VM's guest. The file is
	// the caller's.
	ConnectVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, error)
	// ConfigureVm changes the settings with which a VM will start.
	ConfigureVm(ctx context.Context, s policy.Subject, name string, settings VMSettings) error
}

// Concierge1Interface is the face of our own interface of vm_concierge. With a
// nil h it describes the face to a client and can't be served.
func Concierge1Interface(h Concierge1) OwnInterface {
	own := OwnInterface{Path: ConciergePath, Name: Concierge1Name, Methods: []PlainMethod{
		{
			Name: "ConnectVsock", Right: policy.RightOwn,
			In:  []Arg{{"name", "s"}, {ownerArg, "s"}, {"port", "u"}},
			Out: []Arg{{"stream", "h"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				f, err := h.ConnectVsock(ctx, c.subject, c.args[0].(string), c.args[2].(uint32))
				return []any{f}, err
			},
		},
		{
			Name: "ConfigureVm", Right: policy.RightOwn,
			In: []Arg{{"name", "s"}, {ownerArg, "s"}, {"settings", "a{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				settings, err := readSettings(c.args[2].(map[string]any))
				if err != nil {
					return nil, newError(errInvalidArgs, "settings: %v", err)
				}
				return nil, h.ConfigureVm(ctx, c.subject, c.args[0].(string), settings)
			},
		},
		// The signals of the VMs that the caller has the right to see: for an
		// administrator everybody's, for others their own, which they get
		// without asking.
		{Name: "Subscribe", Right: policy.RightAny, handle: subscribe(true)},
		{Name: "Unsubscribe", Right: policy.RightAny, handle: subscribe(false)},
	}}
	if h == nil {
		for i := range own.Methods {
			own.Methods[i].handle = nil
		}
	}
	return own
}

func subscribe(on bool) func(context.Context, *plainCall) ([]any, error) {
	return func(_ context.Context, c *plainCall) ([]any, error) {
		c.session.peers.subscribe(c.subject.Caller.Name, on)
		return nil, nil
	}
}

func readSettings(d map[string]any) (VMSettings, error) {
	var s VMSettings
	for key, value := range d {
		var ok bool
		switch key {
		case "memory":
			s.MemoryMiB, ok = setting[uint64](value)
		case "cpus":
			s.CPUs, ok = setting[uint32](value)
		case "network":
			s.Network, ok = setting[string](value)
		default:
			return s, fmt.Errorf("there is no %q; the settings are memory (t, MiB), cpus (u) and network (s)", key)
		}
		if !ok {
			return s, fmt.Errorf("%s has the wrong type; memory is t (MiB), cpus u, network s", key)
		}
	}
	return s, nil
}

func setting[T any](value any) (*T, bool) {
	v, ok := value.(T)
	return &v, ok
}
