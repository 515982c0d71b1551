package tap_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/helper/tap"
)

// serveHelper runs a privileged helper until stop.
func serveHelper(t *testing.T, path string) (stop func()) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	check(t, err)
	s := &helper.Server{PeerUID: uint32(os.Geteuid()), Networks: networks(t), Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return func() {
		cancel()
		check(t, <-done)
		l.Close()
	}
}

// By the helper's client: the interface is there for as long as the
// descriptor, whatever becomes of the helper.
func TestByTheHelper(t *testing.T) {
	dir, err := os.MkdirTemp("", "tap") // short, because socket addresses are
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &helper.Client{Path: filepath.Join(dir, "s")}
	w := newWorld(t)
	stop := serveHelper(t, c.Path)
	g := newGuest(t, addByHelper{c}, spec(1))
	if got, _ := g.asks(w, 4000, "hello"); got != hostAddr.String() {
		t.Errorf("the world was asked by %s", got)
	}
	_, err = c.AddTap(t.Context(), helper.TapSpec{ID: "vm2", Gateway: netip.MustParsePrefix("10.0.0.1/29"), Guest: netip.MustParseAddr("10.0.0.2")})
	if !errors.Is(err, helper.ErrRefused) || !strings.Contains(err.Error(), "--address-pool") {
		t.Errorf("a network of others: %v", err)
	}
	stop()
	g.asks(w, 4000, "without a helper")
	stop = serveHelper(t, c.Path)
	defer stop()
	for range 2 {
		check(t, c.RemoveTap(t.Context(), "vm1"))
	}
	if r, i := ruleset(t), interfaces(t); r != "" || len(i) > 0 {
		t.Errorf("left: %v %s", i, r)
	}
}

type addByHelper struct{ c *helper.Client }

func (a addByHelper) Add(ctx context.Context, s tap.Spec) (*os.File, error) {
	return a.c.AddTap(ctx, s)
}
