package concierge

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// GetServiceInfo tells how this service runs VMs, which everybody may know. It
// finds nothing out that is not known yet: what has not been probed is not
// there.
func (s *Service) GetServiceInfo(context.Context, policy.Subject) (map[string]any, error) {
	d := map[string]any{
		"vsock": string(s.cfg.Vsock), "network": string(s.cfg.Network), "address_pool": s.cfg.Pool.String(),
		"state_dir": s.cfg.StateDir, "runtime_dir": s.cfg.RuntimeDir, "image_dir": s.cfg.ImageDir,
		// A guest's own agents take calls from privileged ports only, where any
		// local user can dial them.
		"vsock_exposed": s.cfg.Vsock == vsock.ModeKernel,
		"instance":      s.journal.instance,
	}
	switch known := s.probed(); {
	case s.cfg.Accel != "":
		d["accel"], d["accel_reason"] = string(s.cfg.Accel), "it is configured"
	case known != nil:
		d["accel"], d["accel_reason"] = string(known.Accel), known.Why
	}
	if free, err := freeSpace(s.disksDir()); err == nil {
		d["state_free"] = uint64(max(free, 0))
	}
	if free, err := freeSpace(s.cfg.RuntimeDir); err == nil {
		d["runtime_free"] = uint64(max(free, 0))
	}
	if _, err := s.installedImage(); err != nil {
		d["image_error"] = err.Error()
	}
	return d, nil
}

// probed is the accelerator as this service or one before has found it out.
func (s *Service) probed() *vmm.AccelChoice {
	if known := s.knownAccel(); known != nil {
		return known
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.RuntimeDir, "accel.json"))
	if err != nil {
		return nil
	}
	var stored vmm.AccelChoice
	if json.Unmarshal(b, &stored) != nil || stored.Accel == "" {
		return nil
	}
	return &stored
}
