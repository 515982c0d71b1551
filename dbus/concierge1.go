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
	// Network is "none", "restricted", "user" or "tap".
	Network *string
	// UncheckedAgent says that an administrator lets the VM run what is no
	// agent of ours with kernel vsock. ConfigureVm does not change it.
	UncheckedAgent bool
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
	// GetVmSettings tells what ConfigureVm has set.
	GetVmSettings(ctx context.Context, s policy.Subject, name string) (VMSettings, error)
	// AllowUncheckedAgent lets a VM run what is no agent of ours with kernel
	// vsock, or forbids it again. It is for administrators.
	AllowUncheckedAgent(ctx context.Context, s policy.Subject, name string, allow bool) error
	// ListenVsock returns a listening socket for the guest's streams to a port
	// of the host, and that port, which the service chooses when it is 0. The
	// file is the caller's.
	ListenVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, uint32, error)
	// OpenVmLogs returns the reading end of a pipe with the VM's log. The file
	// is the caller's.
	OpenVmLogs(ctx context.Context, s policy.Subject, name string, options LogOptions) (*os.File, error)
	// GetState returns all that the caller may see.
	GetState(ctx context.Context, s policy.Subject) (State, error)
	// ListOperations returns the caller's operations, running and recent.
	ListOperations(ctx context.Context, s policy.Subject) ([]map[string]any, error)
	// GetQuota returns what the caller has and may have.
	GetQuota(ctx context.Context, s policy.Subject) (map[string]any, error)
	// GetAllState is GetState for everybody's VMs.
	GetAllState(ctx context.Context, s policy.Subject) (State, error)
	// ListDiskUsage returns what GetQuota does for everybody who has something.
	ListDiskUsage(ctx context.Context, s policy.Subject) ([]map[string]any, error)
	// GetServiceInfo returns how the service runs VMs on this host.
	GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error)

	ImageHandler
	VMDoor
}

// A State is one snapshot. Signals of our own interface with the same Instance
// and a higher Sequence came after it; another Instance is another run of the
// service, whose state has to be asked for again.
type State struct {
	Instance string
	Sequence uint64
	// VMs and Operations are dictionaries like those in VmChanged and
	// OperationChanged.
	VMs, Operations []map[string]any
}

// Signals of our own interface, to those who may see the VM.
const (
	// VmChanged tells what a VM is now; its status is "stopped" when it has
	// gone.
	VmChanged = "VmChanged"
	// OperationChanged tells how far an operation is.
	OperationChanged = "OperationChanged"
)

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
		{
			Name: "GetVmSettings", Right: policy.RightOwn,
			In:  []Arg{{"name", "s"}, {ownerArg, "s"}},
			Out: []Arg{{"settings", "a{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				set, err := h.GetVmSettings(ctx, c.subject, c.args[0].(string))
				return []any{set.dict()}, err
			},
		},
		{
			Name: "AllowUncheckedAgent", Right: policy.RightAdmin,
			In: []Arg{{"name", "s"}, {ownerArg, "s"}, {"allow", "b"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				return nil, h.AllowUncheckedAgent(ctx, c.subject, c.args[0].(string), c.args[2].(bool))
			},
		},
		{
			Name: "ListenVsock", Right: policy.RightOwn,
			In:  []Arg{{"name", "s"}, {ownerArg, "s"}, {"port", "u"}},
			Out: []Arg{{"listener", "h"}, {"port", "u"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				f, port, err := h.ListenVsock(ctx, c.subject, c.args[0].(string), c.args[2].(uint32))
				return []any{f, port}, err
			},
		},
		openVmLogs(h),
		{
			Name: "GetState", Right: policy.RightSelf,
			Out: []Arg{{"instance", "s"}, {"sequence", "t"}, {"vms", "aa{sv}"}, {"operations", "aa{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				st, err := h.GetState(ctx, c.subject)
				return []any{st.Instance, st.Sequence, st.VMs, st.Operations}, err
			},
		},
		{
			Name: "ListOperations", Right: policy.RightSelf,
			Out: []Arg{{"operations", "aa{sv}"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				ops, err := h.ListOperations(ctx, c.subject)
				return []any{ops}, err
			},
		},
		getQuota(h),
		getAllState(h),
		listDiskUsage(h),
		getServiceInfo(h),
		// The signals of the VMs that the caller has the right to see: for an
		// administrator everybody's, for others their own, which they get
		// without asking.
		{Name: "Subscribe", Right: policy.RightSelf, Watch: true, handle: subscribe},
		// Whoever does not want to hear any more may say so.
		{Name: "Unsubscribe", Right: policy.RightAny, handle: unsubscribe},
	}, Signals: []PlainSignal{
		{VmChanged, []Arg{{"instance", "s"}, {"sequence", "t"}, {"vm", "a{sv}"}}},
		{OperationChanged, []Arg{{"instance", "s"}, {"sequence", "t"}, {"operation", "a{sv}"}}},
	}}
	own.Methods = append(own.Methods, imageMethods(h)...)
	own.Methods = append(own.Methods, doorMethods(h)...)
	if h == nil {
		for i := range own.Methods {
			own.Methods[i].handle = nil
		}
	}
	return own
}

func subscribe(_ context.Context, c *plainCall) ([]any, error) {
	to := ownSignals
	if c.subject.Everybody {
		to = everybodysSignals
	}
	peers := c.session.peers
	peers.subscribe(c.subject.Caller.Name, to)
	// What polkit said may be outdated since, before this was written down.
	if a := c.session.polkit; a != nil && a.epoch.Load() != c.epoch {
		a.reviewAll()
	}
	return nil, nil
}

func unsubscribe(_ context.Context, c *plainCall) ([]any, error) {
	c.session.peers.subscribe(c.subject.Caller.Name, noSignals)
	return nil, nil
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

// dict is the settings that are set, as readSettings reads them.
func (s VMSettings) dict() map[string]any {
	d := map[string]any{}
	if s.MemoryMiB != nil {
		d["memory"] = *s.MemoryMiB
	}
	if s.CPUs != nil {
		d["cpus"] = *s.CPUs
	}
	if s.Network != nil {
		d["network"] = *s.Network
	}
	if s.UncheckedAgent {
		d["unchecked_agent"] = true
	}
	return d
}

func setting[T any](value any) (*T, bool) {
	v, ok := value.(T)
	return &v, ok
}
