package concierge

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// cidTries is how many CIDs in turn may be other programs' guests'.
const cidTries = 64

// planVsock decides how streams get to the guest. With kernel vsock all guests
// of the host share one space of CIDs, those of other programs too: the CID is
// taken before anything is announced, by the device that the VM will get.
func (s *Service) planVsock(ctx context.Context, v *vm, p *plan) error {
	if s.cfg.Vsock == vsock.ModeUser {
		p.spec.Vsock = vmm.Vsock{Mode: vsock.ModeUser, CID: v.cid, Ports: vsock.HostPorts[:]}
		return nil
	}
	for range cidTries {
		f, err := s.reserveCID(ctx, vsock.Addr{VM: v.id, CID: v.cid})
		if err == nil {
			device := p.add(f)
			p.spec.Vsock = vmm.Vsock{Mode: vsock.ModeKernel, CID: v.cid, Device: &device}
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		v.log.Info("another program's VM has the CID", "cid", v.cid)
		s.mu.Lock()
		v.mu.Lock()
		v.cid = s.takeCID()
		v.mu.Unlock()
		s.mu.Unlock()
	}
	return fmt.Errorf("kernel vsock: %d CIDs in turn are in use by VMs of other programs", cidTries)
}

func (s *Service) reserveCID(ctx context.Context, guest vsock.Addr) (*os.File, error) {
	if s.cfg.ReserveCID != nil {
		return s.cfg.ReserveCID(ctx, guest)
	}
	return vsock.ReserveCID(guest.CID)
}

// takeCID returns the next CID; the caller holds the table's lock. None is used
// again while the service runs.
func (s *Service) takeCID() uint32 {
	cid := s.nextCID
	s.nextCID++
	return cid
}

// agentAllowed refuses a guest that may not have our agents where every user
// of the host can dial it, unless an administrator has allowed it.
func (s *Service) agentAllowed(k key, req *pb.StartVmRequest, fds fdMap) error {
	if s.cfg.Vsock != vsock.ModeKernel {
		return nil
	}
	own := ""
	switch paths := req.GetVm(); {
	case fds[pb.StartVmRequest_KERNEL] != nil, !req.StartTermina && paths.GetKernel() != "":
		own = "kernel"
	case fds[pb.StartVmRequest_INITRD] != nil:
		own = "initrd"
	case fds[pb.StartVmRequest_ROOTFS] != nil, !req.StartTermina && paths.GetRootfs() != "":
		own = "root file system"
	default:
		return nil
	}
	set, err := s.settings(k)
	if err != nil || set.UncheckedAgent {
		return err
	}
	return fmt.Errorf("the VM has a %s of its own, and with kernel vsock every user of this host can dial its guest, which only Auberge's agents prevent: an administrator can allow it (vmc --owner %d vsock-allow %q), or set vsock to user", own, k.uid, k.name)
}
