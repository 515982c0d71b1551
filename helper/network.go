package helper

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/auberge-vm/auberge/helper/tap"
)

// A TapSpec says what a VM's network is to be.
type TapSpec = tap.Spec

// tapAddArgs ask for a TAP interface of a VM.
type tapAddArgs struct {
	ID         string       `json:"id"`
	Gateway    netip.Prefix `json:"gateway"`
	Guest      netip.Addr   `json:"guest"`
	Restricted bool         `json:"restricted,omitempty"`
}

func (a *tapAddArgs) spec() TapSpec {
	return TapSpec{ID: a.ID, Gateway: a.Gateway, Guest: a.Guest, Restricted: a.Restricted}
}

func (a *tapAddArgs) audit() []any {
	return []any{"vm", a.ID, "gateway", a.Gateway, "guest", a.Guest, "restricted", a.Restricted}
}

func (a *tapAddArgs) whose() string { return "network of " + a.ID }

var errNoNetworks = fmt.Errorf("%w: it was started without networks for VMs (see --taps)", ErrRefused)

func (a *tapAddArgs) check(s *Server) error {
	if s.Networks == nil {
		return errNoNetworks
	}
	return refusal(s.Networks.Check(a.spec()))
}

func (a *tapAddArgs) run(ctx context.Context, s *Server) (*os.File, error) {
	return s.Networks.Add(ctx, a.spec())
}

// tapRemoveArgs ask for what is left of a VM's interface to be taken away.
type tapRemoveArgs struct {
	ID string `json:"id"`
}

func (a *tapRemoveArgs) audit() []any { return []any{"vm", a.ID} }

func (a *tapRemoveArgs) whose() string { return "network of " + a.ID }

func (a *tapRemoveArgs) check(s *Server) error {
	if s.Networks == nil {
		return errNoNetworks
	}
	return refusal(tap.CheckID(a.ID))
}

func (a *tapRemoveArgs) run(ctx context.Context, s *Server) (*os.File, error) {
	return nil, refusal(s.Networks.Remove(ctx, a.ID))
}

func refusal(err error) error {
	if errors.Is(err, tap.ErrRefused) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// AddTap makes a VM's TAP interface on the host, which is there for as long as
// somebody has its descriptor.
func (c *Client) AddTap(ctx context.Context, s TapSpec) (*os.File, error) {
	return c.callForFile(ctx, "tap-add", &tapAddArgs{ID: s.ID, Gateway: s.Gateway, Guest: s.Guest, Restricted: s.Restricted})
}

// RemoveTap takes away what is left of a VM's TAP interface, if anything is.
func (c *Client) RemoveTap(ctx context.Context, id string) error {
	f, err := c.call(ctx, "tap-remove", &tapRemoveArgs{ID: id})
	if f != nil {
		f.Close()
	}
	return err
}
