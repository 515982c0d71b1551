package concierge

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/concierge/host"
	"github.com/auberge-vm/auberge/concierge/images"
	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// Errors a caller of the own interface can branch on.
var (
	ErrNotFound   = &kind{"no such VM", "NotFound"}
	ErrNotRunning = &kind{"the VM is not running", "NotRunning"}
	ErrInvalid    = &kind{"invalid argument", "InvalidArgument"}
)

// A kind is a sort of error with a name for clients.
type kind struct{ text, name string }

func (k *kind) Error() string { return k.text }

// BusErrorName is the error's name on our own interfaces.
func (k *kind) BusErrorName() string { return "io.github.auberge_vm.Error." + k.name }

// An Opener opens a file with a caller's rights.
type Opener interface {
	Open(ctx context.Context, c policy.Caller, path string, mode policy.Mode) (*os.File, error)
}

// Events announces what happens to a VM to those who may know it. Emit keeps
// the order of its calls and does not wait for receivers.
type Events interface {
	Emit(owner uint32, signal string, msg proto.Message)
	// EmitChange announces a change of a VM or an operation on our own
	// interface, in plain values.
	EmitChange(owner uint32, signal, instance string, sequence uint64, what map[string]any)
}

// Config is how a Service runs.
type Config struct {
	// StateDir holds disk images and settings; it survives reboots.
	StateDir string
	// RuntimeDir holds a directory per running VM; it does not.
	RuntimeDir string
	// ImageDir is the packaged guest image.
	ImageDir string
	// UpdateImage takes it into use by itself, when it is another one than
	// before.
	UpdateImage bool
	// Accel forces an accelerator; empty means that a probe chooses.
	Accel vmm.Accel
	// Vsock is the transport of new VMs.
	Vsock vsock.Mode
	// Network is what VMs get unless ConfigureVm says otherwise.
	Network NetworkMode
	// Pool is divided into a /29 for each VM.
	Pool netip.Prefix
	// Host is where guests' time zone and resolver come from.
	Host host.Host
	// SpaceInterval is how often the free space of the image store is looked
	// at; zero means every ten seconds.
	SpaceInterval time.Duration
	// Logout is what becomes of VMs whose user logs out; empty means keep.
	Logout LogoutPolicy
	// AllowVulnerableCPU lets guests run on processors with flaws that the
	// host does nothing about.
	AllowVulnerableCPU bool
	// Quota is what users may have; nil limits nothing.
	Quota *Quota
	// VMGroup is the group in which this process meets the VMs' user; it gets
	// the VMs' directories. Negative where VMs run as this process's own user.
	VMGroup int

	Launcher *vmm.Launcher
	// Networks makes TAP networks; nil where there are none.
	Networks Networks
	Opener   Opener
	// DialGuest opens streams to guests with kernel vsock; nil where this
	// process itself may use reserved source ports.
	DialGuest func(ctx context.Context, guest vsock.Addr) (*vsock.Conn, error)
	// KernelSocket returns a listening socket on a port of the host's AF_VSOCK;
	// nil for vsock.KernelSocket.
	KernelSocket func(port uint32) (*os.File, error)
	// ReserveCID takes a CID for a guest with kernel vsock and returns the
	// device that has it; nil where this process may open it. The error is
	// EADDRINUSE for one that another guest has.
	ReserveCID func(ctx context.Context, guest vsock.Addr) (*os.File, error)
	// Containers may be nil.
	Containers Containers
	Events     Events
	Log        *slog.Logger
	// Observer may be nil.
	Observer Observer
}

// DefaultPool is where VMs get their networks unless configured otherwise; it
// contains the addresses that ChromeOS uses.
var DefaultPool = netip.MustParsePrefix("100.115.128.0/17")

// spaceInterval is how often the free space of the image store is looked at.
const spaceInterval = 10 * time.Second

// A Service is the concierge.
type Service struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	vms     map[key]*vm
	nextCID uint32
	nets    *netPool
	closed  bool
	// hostDown: the host shuts down, and no VM is started.
	hostDown bool
	tidy     *time.Timer // see tidyLater
	accel    *vmm.AccelChoice

	operations operations
	journal    journal
	// pledges are in the order in which they were made, under mu.
	pledges []*diskPledge
	// hostChanges counts them, under mu.
	hostChanges hostChanges

	// settingsTurn lets one ConfigureVm at a time read and write back.
	settingsTurn chan struct{}
	// keysTurn lets one at a time make and remove ssh keys.
	keysTurn chan struct{}
	// probeTurn lets one at a time find out the accelerator.
	probeTurn   chan struct{}
	kernelPorts *kernelPorts
	logs        *vmlog.Store
	images      *images.Store
	logPipes    *logPipes
	running     sync.WaitGroup
	// quit ends every goroutine of the service; VMs stay.
	quit context.Context
	stop context.CancelFunc
}

// key is what tells VMs apart.
type key struct {
	uid         uint32
	label, name string
}

// New returns a service that knows the VMs which its predecessor left
// running.
func New(ctx context.Context, cfg Config) (*Service, error) {
	for _, d := range []string{cfg.StateDir, cfg.RuntimeDir} {
		if !filepath.IsAbs(d) {
			return nil, fmt.Errorf("directory %q must be an absolute path", d)
		}
	}
	// Unix socket addresses end at 108 bytes; the longest name below a VM's
	// directory needs some forty of them.
	if len(cfg.RuntimeDir) > 60 {
		return nil, fmt.Errorf("runtime directory %s: the path is longer than 60 bytes, too long for socket addresses beneath it", cfg.RuntimeDir)
	}
	nets, err := newNetPool(cfg.Pool)
	if err != nil {
		return nil, err
	}
	cfg.SpaceInterval = cmp.Or(cfg.SpaceInterval, spaceInterval)
	quit, stop := context.WithCancel(context.Background())
	s := &Service{cfg: cfg, log: cfg.Log, vms: map[key]*vm{}, nextCID: vsock.CIDFirst, nets: nets,
		operations: operations{}, journal: newJournal(),
		settingsTurn: make(chan struct{}, 1), keysTurn: make(chan struct{}, 1), probeTurn: make(chan struct{}, 1), logs: vmlog.NewStore(), logPipes: newLogPipes(), quit: quit, stop: stop}
	if err := s.prepareDirs(); err != nil {
		stop()
		return nil, err
	}
	if s.images, err = images.Open(filepath.Join(cfg.StateDir, "images"), cfg.ImageDir, cfg.Log); err != nil {
		stop()
		return nil, err
	}
	if cfg.Vsock == vsock.ModeKernel {
		if s.kernelPorts, err = s.listenKernelPorts(ctx); err != nil {
			stop()
			return nil, fmt.Errorf("kernel vsock was asked for: %w (or use user mode)", err)
		}
	}
	for _, dir := range []string{s.recordsDir(), filepath.Join(s.cfg.StateDir, "settings"), s.keysDir()} {
		if err := sweep(dir); err != nil {
			s.log.Warn("remove what was left unfinished", "err", err)
		}
	}
	s.adoptAll(ctx)
	s.running.Go(s.updateImage)
	if w, err := cfg.Host.Watch(s.log); err == nil {
		s.running.Go(func() { s.watchHost(w) })
	} else {
		s.log.Error("guests will not learn of changes of the host", "err", err)
	}
	s.running.Go(s.tell)
	s.running.Go(s.watchSpace)
	return s, nil
}

func (s *Service) prepareDirs() error {
	if err := os.MkdirAll(s.disksDir(), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := os.MkdirAll(s.recordsDir(), 0o700); err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	if err := os.MkdirAll(s.vmsDir(), 0o711); err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	// The VMs' user has to get through to its own directories. The runtime
	// directory may be somebody else's, and keeps what rights it has.
	fi, err := os.Stat(s.cfg.RuntimeDir)
	if err == nil && fi.Mode()&0o011 != 0o011 {
		err = os.Chmod(s.cfg.RuntimeDir, fi.Mode()|0o011)
	}
	if err == nil {
		err = os.Chmod(s.vmsDir(), 0o711)
	}
	if err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	return nil
}

func (s *Service) vmsDir() string { return filepath.Join(s.cfg.RuntimeDir, "vms") }

// Close ends the service and leaves the VMs running. Starts in progress are
// given up.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.tidyNever()
	s.stop()
	s.running.Wait()
	if s.kernelPorts != nil {
		s.kernelPorts.close()
	}
}

// find returns a VM of the subject that has not ended.
func (s *Service) find(sub policy.Subject, name string) (*vm, error) {
	v, err := s.lookup(sub, name)
	if err == nil && v.ended() {
		return nil, notRunning(sub, name)
	}
	return v, err
}

// lookup returns a VM of the subject that is in the table.
func (s *Service) lookup(sub policy.Subject, name string) (*vm, error) {
	if err := policy.CheckName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[keyOf(sub.Owner, name)]
	if v == nil {
		return nil, notRunning(sub, name)
	}
	return v, nil
}

func notRunning(sub policy.Subject, name string) error {
	return fmt.Errorf("%w: %q of owner %s does not run", ErrNotFound, name, sub.Owner.Word)
}

func keyOf(o policy.Owner, name string) key { return key{uid: o.UID, label: o.Label, name: name} }

// Deadlines of calls into a guest, as on ChromeOS.
const (
	agentTimeout    = 20 * time.Second
	shutdownTimeout = 30 * time.Second
	terminaTimeout  = 150 * time.Second
	readyTimeout    = 60 * time.Second
	exitGrace       = 10 * time.Second
)
