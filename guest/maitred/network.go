package maitred

import (
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ConfigureNetwork gives the VM its address, its default route unless the
// gateway is zero, and its resolver when the request has one.
func (s *Server) ConfigureNetwork(ctx context.Context, req *pb.NetworkConfigRequest) (*pb.EmptyMessage, error) {
	config, err := ipv4Of(req.Ipv4Config)
	if err != nil {
		return nil, err
	}
	if req.ResolvConfig != nil {
		if err := resolverOf(req.ResolvConfig).Validate(); err != nil {
			return nil, invalid("ConfigureNetwork: %v", err)
		}
	}
	s.network.Lock()
	defer s.network.Unlock()
	if err := s.configure(config); err != nil {
		if errors.Is(err, core.ErrNoEthernet) {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		return nil, failure(ctx, err)
	}
	s.log.Info("network configured", "address", config.Prefix, "gateway", config.Gateway)
	if req.ResolvConfig == nil {
		return &pb.EmptyMessage{}, nil
	}
	return s.writeResolver(ctx, req.ResolvConfig)
}

// SetResolvConfig replaces the resolver's configuration.
func (s *Server) SetResolvConfig(ctx context.Context, req *pb.SetResolvConfigRequest) (*pb.EmptyMessage, error) {
	if req.ResolvConfig == nil {
		return nil, invalid("SetResolvConfig without a resolv_config")
	}
	if err := resolverOf(req.ResolvConfig).Validate(); err != nil {
		return nil, invalid("SetResolvConfig: %v", err)
	}
	s.network.Lock()
	defer s.network.Unlock()
	return s.writeResolver(ctx, req.ResolvConfig)
}

// ResetIPv6 makes the VM ask for its IPv6 addresses anew.
func (s *Server) ResetIPv6(ctx context.Context, _ *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	s.network.Lock()
	defer s.network.Unlock()
	if err := core.ResetIPv6(); err != nil {
		return nil, failure(ctx, err)
	}
	return &pb.EmptyMessage{}, nil
}

// OnHostNetworkChanged drops what the VM remembers of the host's old network:
// connections, cached names, and IPv6 addresses.
func (s *Server) OnHostNetworkChanged(ctx context.Context, _ *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	s.network.Lock()
	defer s.network.Unlock()
	if err := core.HostNetworkChanged(); err != nil {
		return nil, failure(ctx, err)
	}
	s.log.Info("the host's network has changed")
	return &pb.EmptyMessage{}, nil
}

func (s *Server) writeResolver(ctx context.Context, config *pb.ResolvConfig) (*pb.EmptyMessage, error) {
	if err := resolverOf(config).Write(s.resolvPath); err != nil {
		return nil, failure(ctx, err)
	}
	return &pb.EmptyMessage{}, nil
}

func resolverOf(c *pb.ResolvConfig) core.Resolver {
	return core.Resolver{Nameservers: c.Nameservers, SearchDomains: c.SearchDomains}
}

// ipv4Of reads addresses as the contract has them: the memory order of
// in_addr, so the first byte of the dotted form is the lowest.
func ipv4Of(c *pb.IPv4Config) (core.IPv4, error) {
	if c == nil || c.Address == 0 {
		return core.IPv4{}, invalid("ConfigureNetwork without an IPv4 address")
	}
	if c.Netmask == 0 {
		return core.IPv4{}, invalid("ConfigureNetwork without a netmask for %s", addrOf(c.Address))
	}
	mask := addrOf(c.Netmask)
	ones, ok := maskBits(mask)
	if !ok {
		return core.IPv4{}, invalid("ConfigureNetwork: %s is not a netmask", mask)
	}
	config := core.IPv4{Prefix: netip.PrefixFrom(addrOf(c.Address), ones)}
	if c.Gateway != 0 {
		config.Gateway = addrOf(c.Gateway)
	}
	if err := config.Validate(); err != nil {
		return core.IPv4{}, invalid("ConfigureNetwork: %v", err)
	}
	return config, nil
}

func addrOf(wire uint32) netip.Addr {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], wire)
	return netip.AddrFrom4(b)
}

// maskBits counts the ones of a netmask, which must all lead.
func maskBits(mask netip.Addr) (int, bool) {
	b := mask.As4()
	m := binary.BigEndian.Uint32(b[:])
	ones := bits.LeadingZeros32(^m)
	return ones, bits.OnesCount32(m) == ones
}
