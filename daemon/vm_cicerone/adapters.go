package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync/atomic"

	"github.com/auberge-vm/auberge/cicerone"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/vsock"
)

// concierge is vm_concierge as the service knows it.
type concierge struct{ client *dbus.ConciergeClient }

var _ cicerone.Concierge = concierge{}

func (c concierge) ListVMs(ctx context.Context) ([]cicerone.VM, error) {
	list, err := c.client.ListVmEndpoints(ctx)
	if err != nil {
		return nil, err
	}
	vms := make([]cicerone.VM, len(list))
	for i, d := range list {
		if vms[i], err = vmOf(d); err != nil {
			return nil, err
		}
	}
	return vms, nil
}

func (c concierge) OpenEndpoints(ctx context.Context, cid uint32) (vm cicerone.VM, e cicerone.Endpoints, err error) {
	d, tremplin, crash, container, err := c.client.OpenVmEndpoints(ctx, cid)
	if err != nil {
		return vm, e, err
	}
	files := []*os.File{tremplin, crash, container}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if vm, err = vmOf(d); err != nil {
		return vm, e, err
	}
	passed, _ := d["passed"].(bool)
	guest := vsock.Addr{VM: vm.Name, CID: vm.CID}
	for i, at := range []struct {
		port uint32
		to   *net.Listener
	}{{vsock.PortTremplinListener, &e.Tremplin}, {vsock.PortCrashListener, &e.Crash}, {vsock.PortContainerListener, &e.Container}} {
		if *at.to, err = vsock.ListenerFile(files[i], guest, at.port, passed); err != nil {
			for _, l := range []net.Listener{e.Tremplin, e.Crash, e.Container} {
				if l != nil {
					l.Close()
				}
			}
			return vm, cicerone.Endpoints{}, fmt.Errorf("take the endpoint of VM %q (CID %d) for port %d: %w", vm.Name, cid, at.port, err)
		}
	}
	return vm, e, nil
}

func (c concierge) Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	f, err := c.client.ConnectVmVsock(ctx, cid, port)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := vsock.FileConn(f, vsock.Addr{CID: cid, Port: port})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (c concierge) TremplinReady(ctx context.Context, cid uint32) error {
	return c.client.TremplinReady(ctx, cid)
}

func (c concierge) ContainerKeys(ctx context.Context, cid uint32, container string) (authorized, hostKey string, err error) {
	return c.client.GetContainerKeys(ctx, cid, container)
}

// vmOf reads what vm_concierge tells of a VM.
func vmOf(d map[string]any) (cicerone.VM, error) {
	var vm cicerone.VM
	var kind uint32
	for _, err := range []error{
		field(d, "cid", &vm.CID, true), field(d, "uid", &vm.Owner.UID, true), field(d, "name", &vm.Name, true),
		field(d, "label", &vm.Owner.Label, false), field(d, "owner", &vm.Owner.Word, false),
		field(d, "pid", &vm.PID, false), field(d, "type", &kind, false),
		field(d, "containers", &vm.Containers, false), field(d, "token", &vm.Token, false),
		field(d, "container_subnet", &vm.ContainerSubnet, false), field(d, "address", &vm.Address, false),
		field(d, "suspended", &vm.Suspended, false),
	} {
		if err != nil {
			return vm, err
		}
	}
	vm.Type = appspb.VmType(kind)
	return vm, nil
}

func field[T any](d map[string]any, key string, to *T, needed bool) error {
	value, there := d[key]
	got, ok := value.(T)
	if ok {
		*to = got
	}
	if there != ok || needed && !there {
		return fmt.Errorf("vm_concierge tells of a VM whose %s is %v", key, value)
	}
	return nil
}

// own serves our own interface by the same service.
type own struct {
	*cicerone.Service
	// more is what everybody may know of how the service is set up.
	more map[string]any
}

var _ dbus.Cicerone1 = own{}

func (o own) GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error) {
	d, err := o.Service.GetServiceInfo(ctx, s)
	if err == nil {
		maps.Copy(d, o.more)
	}
	return d, err
}

// A desktop is the users' on the bus, as soon as that is reached.
type desktop struct{ to atomic.Pointer[dbus.Desktop] }

var _ cicerone.Desktop = &desktop{}

func (d *desktop) call(f func(*dbus.Desktop) error) error {
	to := d.to.Load()
	if to == nil {
		return cicerone.ErrNoDesktop
	}
	err := f(to)
	if errors.Is(err, dbus.ErrNoDesktop) {
		return cicerone.ErrNoDesktop
	}
	return err
}

func (d *desktop) UpdateApplicationList(ctx context.Context, owner uint32, list *appspb.ApplicationList) error {
	return d.call(func(to *dbus.Desktop) error { return to.UpdateApplicationList(ctx, owner, list) })
}

func (d *desktop) UpdateMimeTypes(ctx context.Context, owner uint32, types *appspb.MimeTypes) error {
	return d.call(func(to *dbus.Desktop) error { return to.UpdateMimeTypes(ctx, owner, types) })
}

func (d *desktop) LaunchTerminal(ctx context.Context, owner uint32, params *appspb.TerminalParams) error {
	return d.call(func(to *dbus.Desktop) error { return to.LaunchTerminal(ctx, owner, params) })
}

func (d *desktop) SelectFile(ctx context.Context, owner uint32, req *appspb.SelectFileRequest) error {
	return d.call(func(to *dbus.Desktop) error { return to.SelectFile(ctx, owner, req) })
}

func (d *desktop) OpenUrl(ctx context.Context, owner uint32, url string) error {
	return d.call(func(to *dbus.Desktop) error { return to.OpenUrl(ctx, owner, url) })
}
