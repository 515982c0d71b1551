package maitred_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

func insecureCreds() credentials.TransportCredentials { return insecure.NewCredentials() }

// blockUntilDone is a guest that takes a call and does not answer.
func blockUntilDone(called chan<- struct{}) func(context.Context) (*pb.EmptyMessage, error) {
	return func(ctx context.Context) (*pb.EmptyMessage, error) {
		called <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
}

func TestConfigureNetwork(t *testing.T) {
	var got *pb.IPv4Config
	p := newPair(t, &guest{configureNetwork: func(_ context.Context, r *pb.NetworkConfigRequest) (*pb.EmptyMessage, error) {
		got = r.Ipv4Config
		return &pb.EmptyMessage{}, nil
	}})
	n := guestlink.Network{Address: netip.MustParsePrefix("100.115.128.2/29"), Gateway: netip.MustParseAddr("100.115.128.1")}
	if err := p.ConfigureNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	// The number's bytes in memory are the address as it goes over the network.
	for name, test := range map[string]struct {
		number uint32
		want   string
	}{"address": {got.Address, "\x64\x73\x80\x02"}, "netmask": {got.Netmask, "\xff\xff\xff\xf8"}, "gateway": {got.Gateway, "\x64\x73\x80\x01"}} {
		if b := binary.NativeEndian.AppendUint32(nil, test.number); string(b) != test.want {
			t.Errorf("the %s is % x, want % x", name, b, test.want)
		}
	}
	for _, bad := range []guestlink.Network{
		{},
		{Address: netip.MustParsePrefix("fd00::2/64"), Gateway: netip.MustParseAddr("fd00::1")},
		{Address: n.Address, Gateway: netip.MustParseAddr("fd00::1")},
		{Address: n.Address},
	} {
		if err := p.ConfigureNetwork(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "IPv4") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestNetworkOrder(t *testing.T) {
	if n := maitred.NetworkOrder(netip.MustParseAddr("1.2.3.4")); string(binary.NativeEndian.AppendUint32(nil, n)) != "\x01\x02\x03\x04" {
		t.Errorf("%#x", n)
	}
	if n := maitred.NetworkOrder(netip.MustParseAddr("::1")); n != 0 {
		t.Errorf("an IPv6 address: %#x", n)
	}
	if n := maitred.NetworkOrder(netip.Addr{}); n != 0 {
		t.Errorf("no address: %#x", n)
	}
}

// Every call carries what it was given, and gives back what it got.
func TestCalls(t *testing.T) {
	var got proto.Message
	empty := &pb.EmptyMessage{}
	now := time.Unix(1763745600, 123456789)
	g := &guest{
		setResolvConfig: func(_ context.Context, r *pb.SetResolvConfigRequest) (*pb.EmptyMessage, error) {
			got = r
			return empty, nil
		},
		setTime: func(_ context.Context, r *pb.SetTimeRequest) (*pb.EmptyMessage, error) {
			if !r.Time.AsTime().Equal(now) {
				t.Errorf("the time is %v, want %v", r.Time.AsTime(), now)
			}
			return empty, nil
		},
		mount: func(_ context.Context, r *pb.MountRequest) (*pb.MountResponse, error) {
			got = r
			return &pb.MountResponse{}, nil
		},
		kernelVersion: func(context.Context) (*pb.GetKernelVersionResponse, error) {
			return &pb.GetKernelVersionResponse{KernelRelease: "6.12", KernelVersion: "#1 SMP"}, nil
		},
		shutdown: func(context.Context) (*pb.EmptyMessage, error) { return empty, nil },
	}
	p := newPair(t, g)
	check := func(err error, want proto.Message) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	check(p.SetResolver(t.Context(), guestlink.Resolver{NameServers: []string{"100.115.128.3"}, SearchDomains: []string{"example.org"}}),
		&pb.SetResolvConfigRequest{ResolvConfig: &pb.ResolvConfig{Nameservers: []string{"100.115.128.3"}, SearchDomains: []string{"example.org"}}})
	check(p.Mount(t.Context(), guestlink.Mount{Source: "/dev/vdb", Target: "/mnt", FSType: "btrfs", Flags: 1, Data: "discard",
		CreateTarget: true, MakeFS: true, Permissions: 0o755}),
		&pb.MountRequest{Source: "/dev/vdb", Target: "/mnt", Fstype: "btrfs", Mountflags: 1, Options: "discard",
			CreateTarget: true, MkfsIfNeeded: true, Permissions: 0o755})
	if err := p.SetTime(t.Context(), now); err != nil {
		t.Error(err)
	}
	if release, version, err := p.KernelVersion(t.Context()); err != nil || release != "6.12" || version != "#1 SMP" {
		t.Errorf("kernel %q %q, %v", release, version, err)
	}
	if err := p.PowerOff(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMountFailure(t *testing.T) {
	errno := int32(0)
	p := newPair(t, &guest{mount: func(context.Context, *pb.MountRequest) (*pb.MountResponse, error) {
		return &pb.MountResponse{Error: errno}, nil
	}})
	errno = int32(syscall.ENOENT)
	err := p.Mount(t.Context(), guestlink.Mount{Source: "/dev/vdb", Target: "/mnt"})
	if !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "/dev/vdb on /mnt") {
		t.Error(err)
	}
	errno = -1
	if err := p.Mount(t.Context(), guestlink.Mount{}); err == nil || strings.Contains(err.Error(), "18446744073709551615") {
		t.Errorf("a negative errno: %v", err)
	}
}

func TestStartTermina(t *testing.T) {
	var got *pb.StartTerminaRequest
	resp := &pb.StartTerminaResponse{}
	p := newPair(t, &guest{startTermina: func(_ context.Context, r *pb.StartTerminaRequest) (*pb.StartTerminaResponse, error) {
		got = r
		return resp, nil
	}})
	for theirs, want := range map[pb.StartTerminaResponse_MountResult]guestlink.MountResult{
		pb.StartTerminaResponse_UNKNOWN:           guestlink.MountUnknown,
		pb.StartTerminaResponse_SUCCESS:           guestlink.MountSuccess,
		pb.StartTerminaResponse_PARTIAL_DATA_LOSS: guestlink.MountPartialDataLoss,
		pb.StartTerminaResponse_FAILURE:           guestlink.MountFailure,
		99:                                        guestlink.MountUnknown,
	} {
		resp = &pb.StartTerminaResponse{MountResult: theirs, FreeBytes: 4096, FreeBytesHasValue: true}
		r, err := p.StartTermina(t.Context(), guestlink.Termina{StatefulDevice: "/dev/vdb", Subnet: "100.115.92.192/28", Privileged: true, Features: []int32{1, 77}})
		if err != nil || r != (guestlink.TerminaResult{Mount: want, FreeBytes: 4096, HasFree: true}) {
			t.Errorf("%v: %+v, %v", theirs, r, err)
		}
	}
	want := &pb.StartTerminaRequest{StatefulDevice: "/dev/vdb", LxdIpv4Subnet: "100.115.92.192/28", AllowPrivilegedContainers: true,
		Feature: []pb.StartTerminaRequest_Feature{1, 77}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// An error says what was tried and who is to blame, in words that can be
// shown.
func TestErrors(t *testing.T) {
	var answer error
	p := newPair(t, &guest{shutdown: func(context.Context) (*pb.EmptyMessage, error) { return nil, answer }})
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"the guest's own":    {errors.New("the disk is on fire"), "the guest says: the disk is on fire"},
		"with a code":        {status.Error(codes.PermissionDenied, "not you"), "the guest says: not you"},
		"unavailable":        {status.Error(codes.Unavailable, "later"), "cannot be reached: later"},
		"terminal sequences": {errors.New("a\x1b[31mb\nc\u202ed"), "says: a [31mb c d"},
		"no UTF-8":           {status.Error(codes.Unknown, "a\xffb"), "says: a"},
	} {
		answer = test.err
		err := p.PowerOff(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "shut the guest down: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
			continue
		}
		if s := err.Error(); !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: %q cannot be shown", name, s)
		}
	}
	answer = errors.New(strings.Repeat("ä", 4000))
	if err := p.PowerOff(t.Context()); err == nil || len(err.Error()) > 1200 {
		t.Errorf("a long story: %d bytes", len(err.Error()))
	}
	if err := p.SetTime(t.Context(), time.Now()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a call that the guest does not know: %v", err)
	}
}

func TestSilentGuest(t *testing.T) {
	called := make(chan struct{}, 2)
	p := newPair(t, &guest{shutdown: blockUntilDone(called)})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.PowerOff(ctx); err == nil || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("past the deadline: %v", err)
	}
	// On a busy machine the call may have ended on its way to the guest.
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		<-called
		cancel()
	}()
	if err := p.PowerOff(ctx); err == nil || strings.Contains(err.Error(), "guest says") {
		t.Errorf("given up by the caller: %v", err)
	}
}

func TestUnreachableGuest(t *testing.T) {
	p := newPair(t, nil)
	if err := p.PowerOff(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody there: %v", err)
	}
}

// A guest cannot make the host keep large answers.
func TestOversizedAnswer(t *testing.T) {
	p := newPair(t, &guest{kernelVersion: func(context.Context) (*pb.GetKernelVersionResponse, error) {
		return &pb.GetKernelVersionResponse{KernelRelease: strings.Repeat("x", 100<<10)}, nil
	}})
	if release, _, err := p.KernelVersion(t.Context()); err == nil || release != "" {
		t.Errorf("an answer of 100 KiB was taken: %v", err)
	}
}
