package cicerone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

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

// Deadlines of calls into guests, as on ChromeOS.
const (
	connectTimeout = 5 * time.Second
	callTimeout    = 60 * time.Second
	startTimeout   = 120 * time.Second
	// lxdTimeout bounds the start of the container manager; under emulation it
	// takes the better part of a minute.
	lxdTimeout = 5 * time.Minute
	// desktopTimeout bounds what is handed on to a user's desktop.
	desktopTimeout = 10 * time.Second
)

// defaultContainer is the one that is meant where none is named, and the one
// that a VM without containers is said to have.
const defaultContainer = "penguin"

// Config is how a Service runs.
type Config struct {
	// StateDir holds a small file per VM: what must be known again after a
	// restart of this service or of a VM.
	StateDir string
	// Timezone returns the host's time zone, a name such as Europe/Paris; nil
	// leaves containers the one they have.
	Timezone func() (string, error)
	// ZoneDir is the host's zone files; empty means /usr/share/zoneinfo.
	ZoneDir string
	// WatchInterval is how often an operation in progress is looked after, and
	// a VM told again what it did not hear; zero means every twenty seconds.
	WatchInterval time.Duration

	Concierge Concierge
	Events    Events
	Desktop   Desktop
	Log       *slog.Logger
}

// A Service is the cicerone.
type Service struct {
	cfg Config
	log *slog.Logger

	// mu guards the tables, and all that a vm and a container say is the
	// service's. It is never held across a call, a file or a wait; signals are
	// handed over under it, which keeps them in the order of what happened.
	mu     sync.Mutex
	vms    map[key]*vm
	closed bool
	// stops counts the VMs that were said to have stopped: who takes up a VM
	// meanwhile looks again.
	stops uint64
	// zones counts the changes of the host's time zone.
	zones uint64
	// before is what a run of the service before this one knew, as far as
	// nobody has looked after it yet.
	before  map[key]record
	dialogs map[string]*dialog // by token
	// showing are the users to whose desktops applications are shown, with the
	// desktop that came meanwhile.
	showing map[uint32]context.Context

	// takeTurn lets one at a time take up VMs.
	takeTurn chan struct{}
	// pruneTurn lets one at a time look through the records.
	pruneTurn chan struct{}
	// saveLines are where records are written; mu guards the table.
	saveLines map[key]*saveLine
	// streams counts the files of each user that are used.
	streams map[uint32]int
	running sync.WaitGroup
	// quit ends every goroutine of the service; what runs in guests stays.
	quit context.Context
	stop context.CancelFunc
}

// key is what tells VMs apart.
type key struct {
	uid         uint32
	label, name string
}

func keyOf(o policy.Owner, name string) key { return key{uid: o.UID, label: o.Label, name: name} }

// New returns a service that has looked at every VM which runs, so that it
// may take its name. A concierge that is not there is no error: its VMs are
// looked at when Resync is called, which the daemon does whenever the
// concierge's name gets a new owner.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("state directory %q must be an absolute path", cfg.StateDir)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if cfg.ZoneDir == "" {
		cfg.ZoneDir = "/usr/share/zoneinfo"
	}
	if cfg.WatchInterval == 0 {
		cfg.WatchInterval = 20 * time.Second
	}
	quit, stop := context.WithCancel(context.Background())
	s := &Service{cfg: cfg, log: cfg.Log, vms: map[key]*vm{}, dialogs: map[string]*dialog{}, showing: map[uint32]context.Context{},
		takeTurn: make(chan struct{}, 1), pruneTurn: make(chan struct{}, 1), saveLines: map[key]*saveLine{}, streams: map[uint32]int{},
		quit: quit, stop: stop}
	s.before = s.records()
	if err := s.Resync(ctx); err != nil {
		s.log.Warn("running VMs are not known yet", "err", err)
	}
	return s, nil
}

// Close ends the service and leaves VMs, containers and their operations
// alone: the next one finds them again.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	var all []*vm
	for _, v := range s.vms {
		all = append(all, v)
	}
	s.mu.Unlock()
	s.stop()
	for _, v := range all {
		v.hangUp()
	}
	s.running.Wait()
}

// begin runs f in a goroutine for which Close waits; after Close it does not.
func (s *Service) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beginLocked(f)
}

func (s *Service) beginLocked(f func()) bool {
	if s.closed {
		return false
	}
	s.running.Go(f)
	return true
}

// find returns a VM of the subject.
func (s *Service) find(sub policy.Subject, name string) (*vm, error) {
	if err := policy.CheckName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[keyOf(sub.Owner, name)]
	if v == nil {
		return nil, fmt.Errorf("%w: VM %q of owner %s does not run, or vm_concierge has not announced it", ErrNotFound, name, sub.Owner.Word)
	}
	return v, nil
}

// findContainer returns a VM and the name of its container, which need not exist.
func (s *Service) findContainer(sub policy.Subject, vmName, name string) (*vm, string, error) {
	v, err := s.find(sub, vmName)
	if err != nil {
		return nil, "", err
	}
	name, err = orDefault(name)
	return v, name, err
}

// byCID returns the VM with a CID.
func (s *Service) byCID(cid uint32) *vm {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.vms {
		if v.info.CID == cid {
			return v
		}
	}
	return nil
}

// turn takes one of a kind of turns, unless the context ends before.
func turn(ctx context.Context, c chan struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errClosed = errors.New("vm_cicerone shuts down")
