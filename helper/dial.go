package helper

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vsock"
)

// dialArgs ask for a stream to a guest's AF_VSOCK port, from a source port that
// only privileged processes can have: by that our agents tell the services
// from other processes of the host.
type dialArgs struct {
	CID  uint32 `json:"cid"`
	Port uint32 `json:"port"`
	// VM is the VM's id, for the log.
	VM string `json:"vm,omitempty"`
}

// vmID is what the id of a VM looks like.
var vmID = regexp.MustCompile(`^[0-9a-zA-Z_-]{0,64}$`)

func (a *dialArgs) audit() []any { return []any{"vm", a.VM, "cid", a.CID, "port", a.Port} }

func (a *dialArgs) whose() string { return "cid " + strconv.FormatUint(uint64(a.CID), 10) }

func (a *dialArgs) check(*Server) error {
	switch {
	case a.CID < vsock.CIDFirst || a.CID == vsock.CIDAny:
		return fmt.Errorf("%w: CID %d is no guest", ErrRefused, a.CID)
	case a.Port == 0 || a.Port == vsock.CIDAny:
		return fmt.Errorf("%w: there is no port %d", ErrRefused, a.Port)
	case !vmID.MatchString(a.VM):
		return fmt.Errorf("%w: %q is no VM's id", ErrRefused, a.VM)
	}
	return nil
}

func (a *dialArgs) run(ctx context.Context, s *Server) (*os.File, error) {
	c, err := s.DialGuest(ctx, vsock.Addr{VM: a.VM, CID: a.CID, Port: a.Port})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}
