// Package maitred is the host's side of ChromeOS's guest agent: it hears the
// guest's VmReady on the VM's own endpoint and calls the Maitred service in
// the guest, both by gRPC over vsock. Nothing a guest sends is trusted: its
// identity is the endpoint's, and what it may send is bounded.
package maitred

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// What one guest may ask of its host's listener.
const (
	maxConnections = 8
	maxStreams     = 16
	maxMessage     = 64 << 10 // bytes, both ways: maitred's messages are small
	maxHeaders     = wire.MaxHeaders
	setupTimeout   = 10 * time.Second
	buffer         = wire.Buffer
)

// A Link connects the host with the maitred of one guest.
type Link struct {
	log    *slog.Logger
	server *grpc.Server
	served chan struct{}
	conn   *wire.Conn
	client pb.MaitredClient

	once  sync.Once
	ready chan struct{}

	install     func(guestlink.InstallState)
	installTurn chan struct{}
}

var (
	_ guestlink.Agent         = (*Link)(nil)
	_ guestlink.ContainerHost = (*Link)(nil)
)

// New serves the guest's startup calls on l, which is closed with the link,
// and calls the guest by dial. Nothing is dialled before the first call.
func New(l net.Listener, dial func(context.Context) (net.Conn, error), log *slog.Logger, opts ...Option) (*Link, error) {
	c := &wire.Conn{Dial: dial, MaxMessage: maxMessage}
	k := &Link{
		log: log, conn: c, client: pb.NewMaitredClient(c),
		served: make(chan struct{}), ready: make(chan struct{}), installTurn: make(chan struct{}, 1),
		server: grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams),
			grpc.ReadBufferSize(buffer), grpc.WriteBufferSize(buffer),
			grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(setupTimeout),
			grpc.WaitForHandlers(true)),
	}
	for _, o := range opts {
		o(k)
	}
	pb.RegisterStartupListenerServer(k.server, startupListener{link: k})
	go func() {
		defer close(k.served)
		if err := k.server.Serve(netutil.LimitListener(l, maxConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			k.log.Error("the guest's startup calls are not heard any more", "err", err)
		}
	}()
	return k, nil
}

type startupListener struct {
	pb.UnimplementedStartupListenerServer
	link *Link
}

// VmReady is the guest's only sign of being up.
func (s startupListener) VmReady(context.Context, *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	s.link.MarkReady()
	return &pb.EmptyMessage{}, nil
}

// MarkReady takes the guest for ready without its call: a VM that is found
// again after a restart has made it long ago.
func (k *Link) MarkReady() { k.once.Do(func() { close(k.ready) }) }

// Ready is closed when the guest has called VmReady.
func (k *Link) Ready() <-chan struct{} { return k.ready }

// Close ends both directions and waits for the server: nothing is heard of the
// guest afterwards.
func (k *Link) Close() {
	k.server.Stop()
	<-k.served
	k.conn.Close()
}

func explain(what string, err error) error { return wire.Explain(what, err) }

func words(s string) string { return wire.Words(s) }

// ConfigureNetwork implements guestlink.Agent.
func (k *Link) ConfigureNetwork(ctx context.Context, n guestlink.Network) error {
	if !n.Address.Addr().Is4() || !n.Gateway.Is4() {
		return fmt.Errorf("configure the guest's network: %v by way of %v is not IPv4", n.Address, n.Gateway)
	}
	mask := net.CIDRMask(n.Address.Bits(), 32)
	_, err := k.client.ConfigureNetwork(ctx, &pb.NetworkConfigRequest{Ipv4Config: &pb.IPv4Config{
		Address: NetworkOrder(n.Address.Addr()),
		Netmask: binary.NativeEndian.Uint32(mask),
		Gateway: NetworkOrder(n.Gateway),
	}})
	return explain("configure the guest's network", err)
}

// NetworkOrder gives an IPv4 address as the contract carries it: a number
// whose bytes in memory are in network order.
func NetworkOrder(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// SetResolver implements guestlink.Agent.
func (k *Link) SetResolver(ctx context.Context, r guestlink.Resolver) error {
	_, err := k.client.SetResolvConfig(ctx, &pb.SetResolvConfigRequest{ResolvConfig: &pb.ResolvConfig{
		Nameservers: r.NameServers, SearchDomains: r.SearchDomains}})
	return explain("set the guest's name servers", err)
}

// SetTime implements guestlink.Agent.
func (k *Link) SetTime(ctx context.Context, t time.Time) error {
	_, err := k.client.SetTime(ctx, &pb.SetTimeRequest{Time: timestamppb.New(t)})
	return explain("set the guest's clock", err)
}

// Mount implements guestlink.Agent.
func (k *Link) Mount(ctx context.Context, m guestlink.Mount) error {
	what := fmt.Sprintf("mount %s on %s in the guest", m.Source, m.Target)
	r, err := k.client.Mount(ctx, &pb.MountRequest{Source: m.Source, Target: m.Target, Fstype: m.FSType,
		Mountflags: m.Flags, Options: m.Data, CreateTarget: m.CreateTarget,
		MkfsIfNeeded: m.MakeFS, Permissions: m.Permissions})
	if err != nil {
		return explain(what, err)
	}
	if r.Error != 0 {
		return fmt.Errorf("%s: %w", what, syscall.Errno(uint32(r.Error)))
	}
	return nil
}

// KernelVersion implements guestlink.Agent.
func (k *Link) KernelVersion(ctx context.Context) (string, string, error) {
	r, err := k.client.GetKernelVersion(ctx, &pb.EmptyMessage{})
	if err != nil {
		return "", "", explain("ask for the guest's kernel version", err)
	}
	return r.KernelRelease, r.KernelVersion, nil
}

// PowerOff implements guestlink.Agent.
func (k *Link) PowerOff(ctx context.Context) error {
	_, err := k.client.Shutdown(ctx, &pb.EmptyMessage{})
	return explain("shut the guest down", err)
}

// StartTermina implements guestlink.ContainerHost.
func (k *Link) StartTermina(ctx context.Context, t guestlink.Termina) (guestlink.TerminaResult, error) {
	req := &pb.StartTerminaRequest{StatefulDevice: t.StatefulDevice, LxdIpv4Subnet: t.Subnet, AllowPrivilegedContainers: t.Privileged}
	for _, f := range t.Features {
		req.Feature = append(req.Feature, pb.StartTerminaRequest_Feature(f))
	}
	r, err := k.client.StartTermina(ctx, req)
	if err != nil {
		return guestlink.TerminaResult{}, explain("prepare the guest for containers", err)
	}
	res := guestlink.TerminaResult{FreeBytes: r.FreeBytes, HasFree: r.FreeBytesHasValue}
	switch r.MountResult {
	case pb.StartTerminaResponse_SUCCESS:
		res.Mount = guestlink.MountSuccess
	case pb.StartTerminaResponse_PARTIAL_DATA_LOSS:
		res.Mount = guestlink.MountPartialDataLoss
	case pb.StartTerminaResponse_FAILURE:
		res.Mount = guestlink.MountFailure
	}
	return res, nil
}
