package helper_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/helper/tap"
)

var pool = netip.MustParsePrefix("100.115.128.0/17")

// networks are for what is refused: nothing is made of them, on this machine.
// Those that are made have tests in their own package.
func networks(t testing.TB) *tap.Networks {
	t.Helper()
	n, err := tap.New(tap.Config{Pool: pool, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A helper that was told to make no networks makes none.
func TestNoNetworks(t *testing.T) {
	r := serve(t, nil)
	_, err := r.AddTap(t.Context(), helper.TapSpec{ID: "abc", Gateway: netip.MustParsePrefix("100.115.128.1/29"), Guest: netip.MustParseAddr("100.115.128.2")})
	if !errors.Is(err, helper.ErrRefused) {
		t.Errorf("add: %v", err)
	}
	if err := r.RemoveTap(t.Context(), "abc"); !errors.Is(err, helper.ErrRefused) {
		t.Errorf("remove: %v", err)
	}
}
