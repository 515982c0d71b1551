package concierge

import (
	"context"
	"os"
	"time"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// accountTimeout bounds the look-up of one account.
const accountTimeout = 20 * time.Second

// stopRemoved stops the VMs of users whose accounts have been removed from the
// machine, in order. Their disks stay for the administrator. It does not wait
// for the VMs.
func (s *Service) stopRemoved(ctx context.Context) {
	vms := map[uint32][]*vm{}
	for _, v := range s.visible(everyone, "") {
		// This process's own user is there, account or not.
		if v.key.uid != 0 && v.key.uid != uint32(os.Geteuid()) {
			vms[v.key.uid] = append(vms[v.key.uid], v)
		}
	}
	for uid, owned := range vms {
		var gone bool
		err := within(ctx, accountTimeout, func(ctx context.Context) (err error) {
			gone, err = s.cfg.Host.UserGone(ctx, uid)
			return err
		})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("VMs run on although their owner's account was not found", "uid", uid, "vms", len(owned), "err", err)
		case gone:
			s.log.Warn("the owner's account is gone: stopping VMs; their disks stay until an administrator removes them",
				"uid", uid, "vms", len(owned), "disks", s.storeDir(policy.Owner{UID: uid}))
			for _, v := range owned {
				v.requestStop(pb.VmStopReason_SERVICE_SHUTDOWN)
			}
		}
	}
}
