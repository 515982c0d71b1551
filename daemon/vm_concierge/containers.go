package main

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// containers is vm_cicerone, over the bus.
type containers struct{ client *dbus.CiceroneClient }

var _ concierge.Containers = containers{}

// VMStarted implements concierge.Containers.
func (c containers) VMStarted(ctx context.Context, v concierge.ContainerVM) error {
	return c.client.NotifyVmStarted(ctx, startedRequest(v))
}

func startedRequest(v concierge.ContainerVM) *ciceronepb.NotifyVmStartedRequest {
	req := &ciceronepb.NotifyVmStartedRequest{
		VmName: v.Name, OwnerId: v.Owner.DaemonWord(), VmType: v.Type, Cid: v.CID, VmToken: v.Token, Pid: uint32(v.PID),
		Ipv4Address: networkOrder(v.Address),
	}
	if v.Subnet.IsValid() {
		req.ContainerIpv4Subnet = networkOrder(v.Subnet.Addr())
		mask := net.CIDRMask(v.Subnet.Bits(), 32)
		req.ContainerIpv4Netmask = binary.NativeEndian.Uint32(mask)
	}
	return req
}

// networkOrder is an address as in_addr holds it in memory.
func networkOrder(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// VMStopping implements concierge.Containers.
func (c containers) VMStopping(ctx context.Context, owner policy.Owner, name string) error {
	return c.client.NotifyVmStopping(ctx, &ciceronepb.NotifyVmStoppingRequest{VmName: name, OwnerId: owner.DaemonWord()})
}

// VMStopped implements concierge.Containers.
func (c containers) VMStopped(ctx context.Context, owner policy.Owner, name string) error {
	return c.client.NotifyVmStopped(ctx, &ciceronepb.NotifyVmStoppedRequest{VmName: name, OwnerId: owner.DaemonWord()})
}

// Start implements concierge.Containers.
func (c containers) Start(ctx context.Context) error { return c.client.Start(ctx) }

// EnsureContainer implements concierge.Containers.
func (c containers) EnsureContainer(ctx context.Context, cid uint32, container, user string) error {
	return c.client.EnsureContainer(ctx, cid, container, user)
}

// follow has the service tell of its VMs whenever vm_cicerone is another one,
// from when this service can be asked about them.
func (c containers) follow(ctx context.Context, ready <-chan struct{}, service *concierge.Service) {
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	c.client.Run(ctx, func(context.Context) { service.ContainersReturned() })
}
