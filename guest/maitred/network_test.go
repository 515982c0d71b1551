package maitred

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/core"
	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// wire is an address as in_addr has it in memory, read by a little-endian
// machine: what inet_pton gives the host.
func wire(t *testing.T, dotted string) uint32 {
	t.Helper()
	b := netip.MustParseAddr(dotted).As4()
	return binary.LittleEndian.Uint32(b[:])
}

func networkRequest(t *testing.T, address, netmask, gateway string) *pb.NetworkConfigRequest {
	t.Helper()
	return &pb.NetworkConfigRequest{Ipv4Config: &pb.IPv4Config{
		Address: wire(t, address), Netmask: wire(t, netmask), Gateway: wire(t, gateway),
	}}
}

func TestAddressesOnTheWire(t *testing.T) {
	if got := addrOf(0x02807364); got != netip.MustParseAddr("100.115.128.2") {
		t.Errorf("0x02807364 is %s, want 100.115.128.2", got)
	}
	for mask, want := range map[string]int{
		"255.255.255.248": 29, "255.255.255.0": 24, "255.255.255.255": 32, "128.0.0.0": 1, "255.255.254.0": 23,
		"255.0.255.0": -1, "0.255.255.255": -1, "248.255.255.255": -1,
	} {
		got, ok := maskBits(netip.MustParseAddr(mask))
		if ok != (want >= 0) || (ok && got != want) {
			t.Errorf("%s has %d bits (%v), want %d", mask, got, ok, want)
		}
	}
}

func TestConfigureNetworkRefuses(t *testing.T) {
	client, _ := serve(t, func(s *Server) {
		s.configure = func(c core.IPv4) error { t.Errorf("configured %+v", c); return nil }
	})
	withResolver := networkRequest(t, "100.115.128.2", "255.255.255.248", "100.115.128.1")
	withResolver.ResolvConfig = &pb.ResolvConfig{Nameservers: []string{"8.8.8.8\noptions x"}}
	for name, req := range map[string]*pb.NetworkConfigRequest{
		"nothing":                      {},
		"zero":                         {Ipv4Config: &pb.IPv4Config{}},
		"no address":                   networkRequest(t, "0.0.0.0", "255.255.255.248", "100.115.128.1"),
		"no netmask":                   networkRequest(t, "100.115.128.2", "0.0.0.0", "100.115.128.1"),
		"a netmask with holes":         networkRequest(t, "100.115.128.2", "255.0.255.0", "100.115.128.1"),
		"a gateway elsewhere":          networkRequest(t, "100.115.128.2", "255.255.255.248", "100.115.128.10"),
		"a good address, bad resolver": withResolver,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.ConfigureNetwork(t.Context(), req)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
}

func TestConfigureNetworkErrors(t *testing.T) {
	var fault error
	client, _ := serve(t, func(s *Server) { s.configure = func(core.IPv4) error { return fault } })
	req := networkRequest(t, "100.115.128.2", "255.255.255.248", "0.0.0.0")
	fault = core.ErrNoEthernet
	_, err := client.ConfigureNetwork(t.Context(), req)
	wantCode(t, err, codes.FailedPrecondition)
	fault = errors.New("cannot bring up eth0")
	_, err = client.ConfigureNetwork(t.Context(), req)
	wantCode(t, err, codes.Internal)
}

func TestConfigureNetworkForReal(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNET) {
		return
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
		t.Fatalf("no veth here: %v", err)
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	client, _ := serve(t, func(s *Server) { s.resolvPath = resolv })
	req := networkRequest(t, "100.115.128.2", "255.255.255.248", "100.115.128.1")
	req.ResolvConfig = &pb.ResolvConfig{Nameservers: []string{"100.115.128.3"}}
	for range 2 {
		if _, err := client.ConfigureNetwork(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	addrs, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || addrs[0].IPNet.String() != "100.115.128.2/29" {
		t.Errorf("addresses %v", addrs)
	}
	if data, _ := os.ReadFile(resolv); !strings.Contains(string(data), "nameserver 100.115.128.3\n") {
		t.Errorf("resolv.conf holds %q", data)
	}
}

func TestSetResolvConfig(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	client, _ := serve(t, func(s *Server) { s.resolvPath = resolv })
	_, err := client.SetResolvConfig(t.Context(), &pb.SetResolvConfigRequest{ResolvConfig: &pb.ResolvConfig{
		Nameservers: []string{"1.1.1.1"}, SearchDomains: []string{"linux.test"},
	}})
	wantCode(t, err, codes.OK)
	before, err := os.ReadFile(resolv)
	if err != nil || !strings.HasSuffix(string(before), "nameserver 1.1.1.1\nsearch linux.test\n") {
		t.Errorf("it holds %q, %v", before, err)
	}
	for name, c := range map[string]*pb.ResolvConfig{
		"nothing":                   nil,
		"a name":                    {Nameservers: []string{"dns.google"}},
		"a newline":                 {Nameservers: []string{"1.1.1.1\nnameserver 6.6.6.6"}},
		"a newline in a domain":     {SearchDomains: []string{"a\nnameserver 6.6.6.6"}},
		"a good one and a bad one":  {Nameservers: []string{"1.1.1.2", "x y"}},
		"more servers than anybody": {Nameservers: make([]string, 100)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.SetResolvConfig(t.Context(), &pb.SetResolvConfigRequest{ResolvConfig: c})
			wantCode(t, err, codes.InvalidArgument)
			if after, _ := os.ReadFile(resolv); string(after) != string(before) {
				t.Errorf("it holds %q now", after)
			}
		})
	}
	// An empty configuration is one: no name servers.
	_, err = client.SetResolvConfig(t.Context(), &pb.SetResolvConfigRequest{ResolvConfig: &pb.ResolvConfig{}})
	wantCode(t, err, codes.OK)
	if after, _ := os.ReadFile(resolv); strings.Contains(string(after), "nameserver ") {
		t.Errorf("it holds %q", after)
	}
}
