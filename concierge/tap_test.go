package concierge

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/concierge/host"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// pipes are Networks whose interfaces are the writing ends of pipes, of which
// the other end tells when nobody has them any more.
type pipes struct {
	fail error

	mu      sync.Mutex
	added   []Tap
	ends    []*os.File
	removed []string
}

func (p *pipes) AddTap(_ context.Context, t Tap) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.added = append(p.added, t)
	if p.fail != nil {
		return nil, p.fail
	}
	r, w, err := os.Pipe()
	p.ends = append(p.ends, r)
	return w, err
}

func (p *pipes) RemoveTap(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = append(p.removed, id)
	return nil
}

// there says whether somebody has the n-th interface.
func (p *pipes) there(t *testing.T, n int) bool {
	t.Helper()
	raw, err := p.ends[n].SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	hungUp := false
	raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err = unix.Poll(fds, 0)
		hungUp = fds[0].Revents&unix.POLLHUP != 0
	})
	if err != nil {
		t.Fatal(err)
	}
	return !hungUp
}

func withPipes(t *testing.T, b *bed) *pipes {
	p := &pipes{}
	b.cfg.Networks, b.cfg.Network = p, NetworkTap
	t.Cleanup(func() {
		for _, f := range p.ends {
			f.Close()
		}
	})
	return p
}

// A VM's interface is there for as long as the VM, over restarts of the
// service, and is taken away in the end.
func TestTap(t *testing.T) {
	b := newBed(t)
	p := withPipes(t, b)
	heard := b.hears()
	b.resolver("nameserver 198.51.100.53\nnameserver 2001:db8::53\n")
	s := b.serve()
	r, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	id := s.vms[keyOf(alice.Owner, "x")].id
	want := Tap{ID: id, Gateway: netip.MustParsePrefix("100.115.128.1/29"), Guest: netip.MustParseAddr("100.115.128.2")}
	if len(p.added) != 1 || p.added[0] != want {
		t.Fatalf("the network is %+v, want %+v", p.added, want)
	}
	if !slices.Contains(heard(), "servers 198.51.100.53") {
		t.Errorf("the guest heard %q", heard())
	}
	if r.VmInfo.Ipv4Address == 0 {
		t.Error("the VM has no address")
	}
	s.Close()
	if !p.there(t, 0) {
		t.Error("the interface went with the service")
	}
	s = b.serve()
	b.resolver("nameserver 198.51.100.54\n")
	await(t, "the new name server", func() bool { return slices.Contains(heard(), "servers 198.51.100.54") })
	if len(p.added) != 1 || len(p.removed) != 0 {
		t.Errorf("after a restart: added %v, removed %v", p.added, p.removed)
	}
	b.stop(s, "x")
	b.awaitGone(s)
	if !slices.Equal(p.removed, []string{id}) || p.there(t, 0) {
		t.Errorf("in the end: removed %v, there %v", p.removed, p.there(t, 0))
	}
}

// What ended while the service was away has its network taken away.
func TestTapOfAVmThatHasGone(t *testing.T) {
	b := newBed(t)
	p := withPipes(t, b)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	v := s.vms[keyOf(alice.Owner, "x")]
	s.Close()
	if err := v.processes.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = b.serve()
	b.awaitGone(s)
	if !slices.Equal(p.removed, []string{v.id}) || p.there(t, 0) {
		t.Errorf("removed %v, there %v", p.removed, p.there(t, 0))
	}
}

// A network that cannot be made is a start that is refused, and what may be
// left of it is taken away.
func TestTapIsRefused(t *testing.T) {
	b := newBed(t)
	p := withPipes(t, b)
	p.fail = errors.New("the host has a route to everything")
	s := b.serve()
	if _, err := b.small(s, "x"); !errors.Is(err, p.fail) {
		t.Errorf("%v", err)
	}
	if len(p.removed) != 1 || p.removed[0] != p.added[0].ID {
		t.Errorf("added %v, removed %v", p.added, p.removed)
	}
	if got := b.events.take(); len(got) > 0 {
		t.Errorf("it was announced: %q", got)
	}
	b.gone()
	// A request that is refused for another reason costs nobody anything.
	if _, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: "y", EnableGpu: true}, nil); err == nil || len(p.added) != 1 {
		t.Errorf("%v, added %v", err, p.added)
	}
}

func TestNetworkModes(t *testing.T) {
	for name, test := range map[string]struct {
		mode, usual NetworkMode
		helper      bool
		units       bool
		want        string // part of the refusal
		tap         bool
	}{
		"tap":                           {mode: NetworkTap, usual: NetworkTap, helper: true, tap: true},
		"tap where it is not usual":     {mode: NetworkTap, usual: NetworkUser, helper: true, tap: true},
		"tap without a helper":          {mode: NetworkTap, usual: NetworkUser, want: "--helper"},
		"restricted":                    {mode: NetworkRestricted, usual: NetworkTap, helper: true, tap: true},
		"restricted without TAPs":       {mode: NetworkRestricted, usual: NetworkUser, helper: true},
		"user":                          {mode: NetworkUser, usual: NetworkTap, helper: true},
		"user in a unit":                {mode: NetworkUser, usual: NetworkTap, helper: true, units: true, want: `choose "tap"`},
		"restricted in a unit, no TAPs": {mode: NetworkRestricted, usual: NetworkRestricted, units: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Service{cfg: Config{Network: test.usual, Launcher: &vmm.Launcher{}}}
			if test.helper {
				s.cfg.Networks = &pipes{}
			}
			if test.units {
				s.cfg.Launcher.Units = &vmm.Units{}
			}
			p := &plan{}
			err := s.network(&vm{net: vmm.Network{Subnet: netip.MustParsePrefix("10.0.0.0/29")}}, test.mode, p)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %q", err, test.want)
				}
				return
			}
			if err != nil || (p.spec.Network.Tap != nil) != test.tap || p.spec.Network.Restricted != (test.mode == NetworkRestricted) {
				t.Errorf("%+v, %v", p.spec.Network, err)
			}
		})
	}
}

func TestNameServers(t *testing.T) {
	tap := new(vmm.File)
	for name, test := range map[string]struct {
		net  vmm.Network
		host []string
		want []string
		fail bool
	}{
		"of a user-mode network": {net: vmm.Network{NameServer: netip.MustParseAddr("10.0.0.3")}, host: []string{"198.51.100.1"}, want: []string{"10.0.0.3"}},
		"the host's":             {net: vmm.Network{Tap: tap}, host: []string{"198.51.100.1", "198.51.100.2"}, want: []string{"198.51.100.1", "198.51.100.2"}},
		"what is reached":        {net: vmm.Network{Tap: tap}, host: []string{"127.0.0.53", "::1", "2001:db8::1", "fe80::1%eth0", "169.254.1.1", "0.0.0.0", "x", "198.51.100.1"}, want: []string{"198.51.100.1"}},
		"no more than are asked": {net: vmm.Network{Tap: tap}, host: []string{"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4"}, want: []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"}},
		"none that is reached":   {net: vmm.Network{Tap: tap}, host: []string{"127.0.0.1"}, fail: true},
		"none at all":            {net: vmm.Network{Tap: tap}, fail: true},
		"none without a way":     {net: vmm.Network{Tap: tap, Restricted: true}, host: []string{"198.51.100.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nameServers(&test.net, host.DNS{NameServers: test.host})
			if !slices.Equal(got, test.want) || (err != nil) != test.fail {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// resolver sets the host's name servers.
func (b *bed) resolver(text string) {
	b.t.Helper()
	if b.cfg.Host.Resolver == "" {
		b.cfg.Host.Resolver = b.t.TempDir() + "/resolv.conf"
	}
	if err := os.WriteFile(b.cfg.Host.Resolver+".next", []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.cfg.Host.Resolver+".next", b.cfg.Host.Resolver); err != nil {
		b.t.Fatal(err)
	}
}
