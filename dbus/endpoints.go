package dbus

import (
	"context"
	"os"

	"github.com/auberge-vm/auberge/policy"
)

// VMEndpoints are where the streams of one VM to the host's ports arrive. The
// files are listening sockets, or with kernel vsock sockets over which accepted
// streams come.
type VMEndpoints struct {
	VM                         map[string]any
	Tremplin, Crash, Container *os.File
}

// A VMDoor handles the methods by which Auberge's daemons reach what is in VMs,
// of whichever user. Files are the caller's.
type VMDoor interface {
	// ListVMEndpoints lists the VMs that can be reached: cid, uid, label, owner,
	// name, pid, type (vm_tools.apps.VmType), containers, token,
	// container_subnet, address, suspended, passed.
	ListVMEndpoints(ctx context.Context) ([]map[string]any, error)
	// OpenVMEndpoints returns one of them with its endpoints.
	OpenVMEndpoints(ctx context.Context, cid uint32) (VMEndpoints, error)
	// ConnectVMVsock returns a stream to a port of the VM's guest.
	ConnectVMVsock(ctx context.Context, cid, port uint32) (*os.File, error)
	// TremplinReady says that the VM's containers can be managed.
	TremplinReady(ctx context.Context, cid uint32) error
	// GetContainerKeys returns the public key by which a container lets its
	// owner in, and the private one by which its owner knows it. They are made
	// when there are none.
	GetContainerKeys(ctx context.Context, cid uint32, container string) (authorizedKey, hostPrivateKey string, err error)
}

func doorMethods(h VMDoor) []PlainMethod {
	cid := Arg{"cid", "u"}
	return []PlainMethod{
		{
			Name: "ListVmEndpoints", Right: policy.RightDaemon,
			Out: []Arg{{"vms", "aa{sv}"}},
			handle: func(ctx context.Context, _ *plainCall) ([]any, error) {
				list, err := h.ListVMEndpoints(ctx)
				return []any{list}, err
			},
		},
		{
			Name: "OpenVmEndpoints", Right: policy.RightDaemon,
			In:  []Arg{cid},
			Out: []Arg{{"vm", "a{sv}"}, {"tremplin", "h"}, {"crash", "h"}, {"container", "h"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				e, err := h.OpenVMEndpoints(ctx, c.args[0].(uint32))
				return []any{e.VM, e.Tremplin, e.Crash, e.Container}, err
			},
		},
		{
			Name: "ConnectVmVsock", Right: policy.RightDaemon,
			In:  []Arg{cid, {"port", "u"}},
			Out: []Arg{{"stream", "h"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				f, err := h.ConnectVMVsock(ctx, c.args[0].(uint32), c.args[1].(uint32))
				return []any{f}, err
			},
		},
		{
			Name: "TremplinReady", Right: policy.RightDaemon,
			In: []Arg{cid},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				return nil, h.TremplinReady(ctx, c.args[0].(uint32))
			},
		},
		{
			Name: "GetContainerKeys", Right: policy.RightDaemon,
			In:  []Arg{cid, {"container", "s"}},
			Out: []Arg{{"authorized_key", "s"}, {"host_private_key", "s"}},
			handle: func(ctx context.Context, c *plainCall) ([]any, error) {
				authorized, host, err := h.GetContainerKeys(ctx, c.args[0].(uint32), c.args[1].(string))
				return []any{authorized, host}, err
			},
		},
	}
}
