package cicerone_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/test/syncbuf"
)

// A container's address is in its VM's network, whatever the guest says: the
// user's browser is led there.
func TestAddressOfAContainer(t *testing.T) {
	for name, test := range map[string]struct {
		subnet, says string
		taken        bool
	}{
		"its own":                              {"100.115.192.0/28", "100.115.192.5", true},
		"the host itself":                      {"100.115.192.0/28", "127.0.0.1", false},
		"a machine of the host's network":      {"100.115.192.0/28", "192.168.1.1", false},
		"another VM's":                         {"100.115.192.0/28", "100.115.192.21", false},
		"some, and no network is known":        {"", "100.115.192.5", true},
		"the host, and no network is known":    {"", "127.0.0.1", false},
		"all of them, and no network is known": {"", "255.255.255.255", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var log syncbuf.Buffer
			s := w.serve(func(c *cicerone.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			m := w.boot("termina", 33, func(v *cicerone.VM) { v.ContainerSubnet = test.subnet })
			f := newTremplin(m)
			f.set(func() { f.address = wireAddress(test.says) })
			m.announce(s)
			r, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina"})
			if err != nil {
				t.Fatal(err)
			}
			m.garcon(10000)
			must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: r.ContainerToken, GarconPort: 10000}))
			want := test.says
			if !test.taken {
				want = ""
			}
			if g := next[*pb.ContainerStartedSignal](w, "ContainerStarted"); g.Ipv4Address != want {
				t.Errorf("its address is %q", g.Ipv4Address)
			}
			if _, err := m.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: r.ContainerToken, Url: "http://localhost:631/"}); (err == nil) != test.taken {
				t.Errorf("its own page: %v", err)
			}
			if !test.taken && !strings.Contains(log.String(), test.says) {
				t.Errorf("the log does not tell: %s", log.String())
			}
		})
	}
}
