package concierge

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// SetUpVmUser makes a user in the guest, or finds the one that has the uid.
func (s *Service) SetUpVmUser(ctx context.Context, sub policy.Subject, req *pb.SetUpVmUserRequest) (*pb.SetUpVmUserResponse, error) {
	v, err := s.awake(sub, req.VmName)
	if err != nil {
		return nil, err
	}
	var name string
	err = within(ctx, agentTimeout, func(ctx context.Context) (err error) {
		name, err = v.agent.SetUpUser(ctx, guestlink.User{Name: req.Username, UID: req.Uid, Groups: req.GroupNames})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &pb.SetUpVmUserResponse{Success: true, Username: name}, nil
}

// GetVmEnterpriseReportingInfo tells which kernel the guest runs.
func (s *Service) GetVmEnterpriseReportingInfo(ctx context.Context, sub policy.Subject, req *pb.GetVmEnterpriseReportingInfoRequest) (*pb.GetVmEnterpriseReportingInfoResponse, error) {
	v, _, err := s.up(sub, req.VmName)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	known, suspended := v.kernel, v.suspended
	v.mu.Unlock()
	if known == "" && suspended {
		return nil, fmt.Errorf("%w: %q is suspended and has not said which kernel it runs; resume it first", ErrNotRunning, req.VmName)
	}
	if known == "" {
		err := within(ctx, agentTimeout, func(ctx context.Context) error {
			release, version, err := v.agent.KernelVersion(ctx)
			known = strings.ToValidUTF8(release+" "+version, "?")
			return err
		})
		if err != nil {
			return nil, err
		}
		v.mu.Lock()
		v.kernel = known
		v.mu.Unlock()
	}
	return &pb.GetVmEnterpriseReportingInfoResponse{Success: true, VmKernelVersion: known}, nil
}

// cpuFlaws are the processors' flaws through which a guest could read what is
// not its own, as the kernel names them below
// /sys/devices/system/cpu/vulnerabilities.
var cpuFlaws = []string{"l1tf", "mds"}

const vulnerabilitiesDir = "/sys/devices/system/cpu/vulnerabilities"

// cpuFlaw says which flaw of the processors the host does nothing about, empty
// for none. A kernel that does not know a flaw says nothing of it.
func cpuFlaw(dir string) string {
	for _, name := range cpuFlaws {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		if text := strings.TrimSpace(string(b)); strings.HasPrefix(text, "Vulnerable") {
			return name + ": " + text
		}
	}
	return ""
}

// launchAllowed says why VMs must not run on the host's processors. Emulated
// guests do not run on them.
func (s *Service) launchAllowed(accel vmm.Accel) error {
	flaw := cpuFlaw(vulnerabilitiesDir)
	if flaw == "" || accel == vmm.AccelTCG || s.cfg.AllowVulnerableCPU {
		return nil
	}
	return fmt.Errorf("the host's processors let guests read what is not theirs, and the kernel does nothing about it (%s): boot without \"mitigations=off\", or set allow-vulnerable-cpu", flaw)
}

// GetVmLaunchAllowed says whether VMs may run on this host's processors.
func (s *Service) GetVmLaunchAllowed(ctx context.Context, _ policy.Subject, _ *pb.GetVmLaunchAllowedRequest) (*pb.GetVmLaunchAllowedResponse, error) {
	accel, err := s.accelerator(ctx)
	if err == nil {
		err = s.launchAllowed(accel)
	}
	if err != nil {
		return &pb.GetVmLaunchAllowedResponse{Reason: err.Error()}, nil
	}
	return &pb.GetVmLaunchAllowedResponse{Allowed: true}, nil
}
