package helper

import (
	"context"
	"fmt"
	"os"

	"github.com/auberge-vm/auberge/vsock"
)

// reserveArgs ask for an open /dev/vhost-vsock that has a CID: what a VM with
// kernel vsock is given.
type reserveArgs struct {
	CID uint32 `json:"cid"`
	// VM is the VM's id, for the log.
	VM string `json:"vm,omitempty"`
}

func (a *reserveArgs) audit() []any { return []any{"vm", a.VM, "cid", a.CID} }

func (a *reserveArgs) whose() string { return "cids" }

func (a *reserveArgs) check(*Server) error {
	switch {
	case a.CID < vsock.CIDFirst || a.CID == vsock.CIDAny:
		return fmt.Errorf("%w: CID %d is for no guest of ours", ErrRefused, a.CID)
	case !vmID.MatchString(a.VM):
		return fmt.Errorf("%w: %q is no VM's id", ErrRefused, a.VM)
	}
	return nil
}

func (a *reserveArgs) run(_ context.Context, s *Server) (*os.File, error) {
	return s.ReserveCID(a.CID)
}
