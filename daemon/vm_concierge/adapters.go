package main

import (
	"context"
	"maps"
	"os"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
)

// own serves our own interface by the same service.
type own struct {
	service *concierge.Service
	// more is what the service does not know of itself.
	more map[string]any
}

var _ dbus.Concierge1 = own{}

func (o own) ConnectVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, error) {
	return o.service.ConnectVsock(ctx, s, name, port)
}

func (o own) ConfigureVm(ctx context.Context, s policy.Subject, name string, set dbus.VMSettings) error {
	return o.service.ConfigureVm(ctx, s, name, concierge.Settings{
		MemoryMiB: set.MemoryMiB, CPUs: set.CPUs, Network: (*concierge.NetworkMode)(set.Network)})
}

func (o own) GetVmSettings(_ context.Context, s policy.Subject, name string) (dbus.VMSettings, error) {
	set, err := o.service.GetVmSettings(s, name)
	return dbus.VMSettings{MemoryMiB: set.MemoryMiB, CPUs: set.CPUs, Network: (*string)(set.Network), UncheckedAgent: set.UncheckedAgent}, err
}

func (o own) AllowUncheckedAgent(ctx context.Context, s policy.Subject, name string, allow bool) error {
	return o.service.AllowUncheckedAgent(ctx, s, name, allow)
}

func (o own) ListenVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, uint32, error) {
	return o.service.ListenVsock(ctx, s, name, port)
}

func (o own) OpenVmLogs(ctx context.Context, s policy.Subject, name string, options dbus.LogOptions) (*os.File, error) {
	return o.service.OpenVmLogs(ctx, s, name, concierge.LogOptions(options))
}

func (o own) GetState(ctx context.Context, s policy.Subject) (dbus.State, error) {
	st, err := o.service.GetState(ctx, s)
	return dbus.State(st), err
}

func (o own) ListImages(ctx context.Context, s policy.Subject) ([]map[string]any, error) {
	return o.service.ListImages(ctx, s)
}

func (o own) UpdateImage(ctx context.Context, s policy.Subject) (map[string]any, error) {
	return o.service.UpdateImage(ctx, s)
}

func (o own) RollbackImage(ctx context.Context, s policy.Subject) (map[string]any, error) {
	return o.service.RollbackImage(ctx, s)
}

func (o own) ListOperations(ctx context.Context, s policy.Subject) ([]map[string]any, error) {
	return o.service.ListOperations(ctx, s)
}

func (o own) GetQuota(ctx context.Context, s policy.Subject) (map[string]any, error) {
	return o.service.GetQuota(ctx, s)
}

func (o own) GetAllState(ctx context.Context, s policy.Subject) (dbus.State, error) {
	st, err := o.service.GetAllState(ctx, s)
	return dbus.State(st), err
}

func (o own) ListDiskUsage(ctx context.Context, s policy.Subject) ([]map[string]any, error) {
	return o.service.ListDiskUsage(ctx, s)
}

func (o own) ListVMEndpoints(ctx context.Context) ([]map[string]any, error) {
	return o.service.ListVMEndpoints(ctx)
}

func (o own) OpenVMEndpoints(ctx context.Context, cid uint32) (dbus.VMEndpoints, error) {
	e, err := o.service.OpenVMEndpoints(ctx, cid)
	return dbus.VMEndpoints(e), err
}

func (o own) ConnectVMVsock(ctx context.Context, cid, port uint32) (*os.File, error) {
	return o.service.ConnectVMVsock(ctx, cid, port)
}

func (o own) TremplinReady(ctx context.Context, cid uint32) error {
	return o.service.TremplinReady(ctx, cid)
}

func (o own) GetContainerKeys(ctx context.Context, cid uint32, container string) (authorized, host string, err error) {
	return o.service.GetContainerKeys(ctx, cid, container)
}

func (o own) GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error) {
	d, err := o.service.GetServiceInfo(ctx, s)
	if err == nil {
		maps.Copy(d, o.more)
	}
	return d, err
}

// networks are made by the privileged helper.
type networks struct{ helper *helper.Client }

// AddTap implements concierge.Networks.
func (n networks) AddTap(ctx context.Context, t concierge.Tap) (*os.File, error) {
	return n.helper.AddTap(ctx, helper.TapSpec{ID: t.ID, Gateway: t.Gateway, Guest: t.Guest, Restricted: t.Restricted})
}

// RemoveTap implements concierge.Networks.
func (n networks) RemoveTap(ctx context.Context, id string) error { return n.helper.RemoveTap(ctx, id) }
