package concierge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// Limits of a StartVmRequest.
const (
	maxDisks    = 10
	maxTimeout  = time.Hour
	maxParams   = 1024 // bytes; the kernel takes 2,048 in all
	maxOEM      = 32
	maxOEMBytes = 16 << 10 // in all; the tables that they go into have 64 KiB
)

// baseCmdline is what our kernels and agents need. A guest that panics
// resets at once, which ends the VM. The kernel's tests of its own ciphers
// take a quarter of an emulated boot, and its test of the timer panics when a
// busy host lets an emulated guest wait.
const baseCmdline = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"

// A plan is everything that was decided and opened for a start, before
// anything runs.
type plan struct {
	spec    vmm.Spec
	files   []*os.File
	timeout time.Duration
	mounts  []guestlink.Mount
	termina *guestlink.Termina
	disk    ownDisk
	// image is the key of the installed image of which the VM has files.
	image string
	// tremplin: the image has a manager of containers, which is to be started.
	tremplin bool
	// sparse: the stateful disk can grow on the host.
	sparse bool
	// token and user are for a guest without containers.
	token, user string
}

func (p *plan) close() {
	closeFiles(p.files)
	p.files = nil
}

// add gives a file to the plan.
func (p *plan) add(f *os.File) vmm.File {
	p.files = append(p.files, f)
	return vmm.File(len(p.files) - 1)
}

// prepare checks a request and opens all that it names. passed are the
// caller's descriptors, which stay the caller's.
func (s *Service) prepare(ctx context.Context, v *vm, sub policy.Subject, req *pb.StartVmRequest, passed []*os.File) (_ *plan, err error) {
	if err := checkSupported(req); err != nil {
		return nil, err
	}
	fds, err := sortFDs(req, passed)
	if err != nil {
		return nil, err
	}
	p := &plan{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := s.size(v, req, p); err != nil {
		return nil, err
	}
	p.spec.ID, p.spec.Name, p.spec.Owner = v.id, v.key.name, v.owner.Word
	p.spec.OEMStrings = req.OemStrings
	o := opening{service: s, caller: opensAs(sub), owner: sub.Owner, name: req.Name}
	if err := s.agentAllowed(v.key, req, fds); err != nil {
		return nil, err
	}
	if err := o.boot(ctx, req, fds, p); err != nil {
		return nil, err
	}
	if err := o.disks(ctx, req, fds, p); err != nil {
		return nil, err
	}
	if p.spec.Accel, err = s.accelerator(ctx); err != nil {
		return nil, err
	}
	if err := s.launchAllowed(p.spec.Accel); err != nil {
		return nil, err
	}
	if req.VmType == pb.VmInfo_BRUSCHETTA || req.VmType == pb.VmInfo_BAGUETTE {
		p.token, p.user = uuid.NewString(), req.VmUsername
	}
	if p.tremplin {
		if err := s.takeSubnet(v); err != nil {
			return nil, err
		}
	}
	if err := s.planVsock(ctx, v, p); err != nil {
		return nil, err
	}
	p.timeout = patience(req.Timeout, p.spec.Accel)
	params := []string{baseCmdline, "auberge.vsock=" + string(s.cfg.Vsock)}
	if req.WritableRootfs {
		params = append(params, "auberge.rootfs=rw")
	}
	p.spec.Cmdline = strings.Join(append(params, req.KernelParams...), " ")
	if err := s.addTap(ctx, v, p); err != nil {
		return nil, err
	}
	return p, nil
}

// patience is how long a guest may take to report. ChromeOS's minute holds for
// KVM; an emulated guest is several times slower.
func patience(seconds uint32, accel vmm.Accel) time.Duration {
	switch {
	case seconds > 0:
		return min(time.Duration(seconds)*time.Second, maxTimeout)
	case accel == vmm.AccelTCG:
		return 3 * readyTimeout
	}
	return readyTimeout
}

// opensAs is the user with whose rights paths of a request are opened: the
// caller, or the owner when an administrator acts for one.
func opensAs(sub policy.Subject) policy.Caller {
	if sub.Caller.UID != sub.Owner.UID {
		return policy.Caller{UID: sub.Owner.UID}
	}
	return sub.Caller
}

// checkSupported refuses what this host cannot give, rather than start a VM
// without it.
func checkSupported(req *pb.StartVmRequest) error {
	for name, set := range map[string]bool{
		"enable_gpu": req.EnableGpu, "enable_big_gl": req.EnableBigGl, "vtpm_proxy": req.VtpmProxy,
		"enable_virtgpu_native_context": req.EnableVirtgpuNativeContext,
		"enable_dgpu_passthrough":       req.EnableDgpuPassthrough,
		"enable_audio_capture":          req.EnableAudioCapture,
		"storage_ballooning":            req.StorageBallooning,
		"vm.dlc_id":                     req.GetVm().GetDlcId() != "", "vm.tools_dlc_id": req.GetVm().GetToolsDlcId() != "",
		"vm.bios_dlc_id": req.GetVm().GetBiosDlcId() != "",
	} {
		if set {
			return fmt.Errorf("%s is not supported", name)
		}
	}
	switch req.VmType {
	case pb.VmInfo_UNKNOWN, pb.VmInfo_TERMINA, pb.VmInfo_BRUSCHETTA, pb.VmInfo_BAGUETTE:
	default:
		return fmt.Errorf("VMs of type %v are not supported", req.VmType)
	}
	if req.StartTermina && req.VmType != pb.VmInfo_UNKNOWN && req.VmType != pb.VmInfo_TERMINA {
		return fmt.Errorf("start_termina does not go with a VM of type %v", req.VmType)
	}
	if len(req.Disks) > maxDisks {
		return fmt.Errorf("%d disks are more than %d", len(req.Disks), maxDisks)
	}
	total := 0
	for _, k := range req.KernelParams {
		total += len(k) + 1
		if strings.ContainsFunc(k, unicode.IsControl) {
			return fmt.Errorf("kernel parameter %q contains a control character", k)
		}
	}
	if total > maxParams {
		return fmt.Errorf("the kernel parameters have %d bytes, more than %d", total, maxParams)
	}
	if len(req.OemStrings) > maxOEM {
		return fmt.Errorf("%d OEM strings are more than %d", len(req.OemStrings), maxOEM)
	}
	total = 0
	for _, o := range req.OemStrings {
		total += len(o)
		if strings.ContainsRune(o, 0) {
			return fmt.Errorf("OEM string %q contains NUL", o)
		}
	}
	if total > maxOEMBytes {
		return fmt.Errorf("the OEM strings have %d bytes, more than %d", total, maxOEMBytes)
	}
	return nil
}

// sortFDs pairs the request's descriptor types with the descriptors. The
// seed's way of passing one, a flag, means storage.
func sortFDs(req *pb.StartVmRequest, files []*os.File) (map[pb.StartVmRequest_FdType]*os.File, error) {
	types := req.Fds
	if len(types) == 0 && req.UseFdForStorage && req.StartTermina {
		types = []pb.StartVmRequest_FdType{pb.StartVmRequest_STORAGE}
	}
	if len(types) != len(files) {
		return nil, fmt.Errorf("the request describes %d descriptors, %d came with it", len(types), len(files))
	}
	fds := map[pb.StartVmRequest_FdType]*os.File{}
	for i, t := range types {
		switch t {
		case pb.StartVmRequest_KERNEL, pb.StartVmRequest_ROOTFS, pb.StartVmRequest_STORAGE, pb.StartVmRequest_INITRD:
		default:
			return nil, fmt.Errorf("a descriptor of type %v is not supported", t)
		}
		if fds[t] != nil {
			return nil, fmt.Errorf("two descriptors of type %v", t)
		}
		fi, err := files[i].Stat()
		if err != nil {
			return nil, fmt.Errorf("descriptor of type %v: %w", t, err)
		}
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("the descriptor of type %v is no regular file", t)
		}
		if flags, err := statusFlags(files[i]); err != nil || flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
			return nil, fmt.Errorf("the descriptor of type %v is not open for reading", t)
		}
		fds[t] = files[i]
	}
	return fds, nil
}

// size decides memory, CPUs and network from the request, the owner's
// settings and the defaults.
func (s *Service) size(v *vm, req *pb.StartVmRequest, p *plan) error {
	set, err := s.settings(v.key)
	if err != nil {
		return err
	}
	total, _ := hostMemory()
	memory := min(total>>20/4, defaultMemoryMiB)
	if set.MemoryMiB != nil {
		memory = *set.MemoryMiB
	}
	if err := s.reserveMemory(v, memory<<20); err != nil {
		return err
	}
	p.spec.MemoryMiB = int64(memory)

	cpus := hostCPUs()
	if set.CPUs != nil {
		cpus = *set.CPUs
	}
	if req.Cpus != 0 {
		cpus = req.Cpus
	}
	if err := checkCPUs(cpus); err != nil {
		return err
	}
	p.spec.CPUs = int(cpus)

	mode := s.cfg.Network
	if set.Network != nil {
		mode = *set.Network
	}
	return s.network(v, mode, p)
}

func networkOf(n vmm.Network) guestlink.Network {
	return guestlink.Network{Address: netip.PrefixFrom(n.Guest, n.Subnet.Bits()), Gateway: n.Gateway}
}

func (s *Service) dialer(m *vmm.Machine, port uint32) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := s.dial(ctx, m, port)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// accelerator is what VMs run on; the first call may have to probe.
func (s *Service) accelerator(ctx context.Context) (vmm.Accel, error) {
	if s.cfg.Accel != "" {
		return s.cfg.Accel, nil
	}
	if known := s.knownAccel(); known != nil {
		return known.Accel, nil
	}
	// One probe at a time, however many ask.
	select {
	case s.probeTurn <- struct{}{}:
		defer func() { <-s.probeTurn }()
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the probe of the accelerator: %w", context.Cause(ctx))
	}
	if known := s.knownAccel(); known != nil {
		return known.Accel, nil
	}
	// The VMs' user has to be able to open it by its name.
	img, err := loadImage(s.cfg.ImageDir)
	if err != nil {
		img, err = s.installedImage()
	}
	if err != nil {
		return "", err
	}
	c, err := s.cfg.Launcher.ProbeAccel(ctx, img.kernel, s.cfg.RuntimeDir+"/accel.json")
	if err != nil {
		return "", err
	}
	s.log.Info("accelerator", "accel", c.Accel, "why", c.Why)
	s.mu.Lock()
	s.accel = &c
	s.mu.Unlock()
	return c.Accel, nil
}

func (s *Service) knownAccel() *vmm.AccelChoice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accel
}

// writable says whether a descriptor is open for reading and writing.
func writable(f *os.File) bool {
	flags, err := statusFlags(f)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}

func statusFlags(f *os.File) (flags int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }); cerr != nil {
		return 0, cerr
	}
	return flags, err
}

var errNoStateful = errors.New("start_termina needs a stateful disk: make one with CreateDiskImage and name it in disks[0], or pass a STORAGE descriptor")
