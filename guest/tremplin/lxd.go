package tremplin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// powerOffSignal makes incusd stop its containers and end.
const powerOffSignal = unix.SIGPWR

// restartWait is how long calls wait for an Incus that is started again.
const restartWait = time.Minute

// lxd is how far the start of Incus is.
type lxd struct {
	start func(ctx context.Context, reset bool) error

	mu       sync.Mutex
	starting *lxdStart
	started  bool
}

type lxdStart struct {
	reset bool // the database is to go, which somebody may want only later
	done  chan struct{}
	err   error // once done is closed
}

// StartLxd starts Incus in the background.
func (s *Server) StartLxd(_ context.Context, req *pb.StartLxdRequest) (*pb.StartLxdResponse, error) {
	_, state := s.beginLxd(req.ResetLxdDb)
	return &pb.StartLxdResponse{Status: state}, nil
}

// beginLxd begins the start unless it has begun.
func (s *Server) beginLxd(reset bool) (*lxdStart, pb.StartLxdResponse_Status) {
	s.lxd.mu.Lock()
	defer s.lxd.mu.Unlock()
	switch {
	case s.lxd.starting != nil:
		s.lxd.starting.reset = s.lxd.starting.reset || reset
		return s.lxd.starting, pb.StartLxdResponse_STARTING
	case s.lxd.started && !reset:
		return nil, pb.StartLxdResponse_ALREADY_RUNNING
	}
	start := &lxdStart{reset: reset, done: make(chan struct{})}
	s.lxd.starting, s.lxd.started = start, false
	s.host.startLxd(pb.StartLxdProgress_STARTING, "")
	s.running.Go(func() {
		begun := time.Now()
		for again := true; again; {
			start.err = s.tryLxd(reset)
			s.lxd.mu.Lock()
			if again = start.reset && !reset; again {
				reset = true
			} else {
				s.lxd.starting, s.lxd.started = nil, start.err == nil
				s.lxdEnded(start.err) // before the next one may begin
			}
			s.lxd.mu.Unlock()
		}
		if start.err != nil {
			s.log.Error("Incus did not start", "err", start.err)
		} else {
			s.log.Info("Incus is ready", "after", time.Since(begun).Round(time.Millisecond))
			s.states.wake()
		}
		close(start.done)
	})
	return start, pb.StartLxdResponse_STARTING
}

func (s *Server) lxdEnded(err error) {
	if err != nil {
		s.host.startLxd(pb.StartLxdProgress_FAILED, err.Error())
	} else {
		s.host.startLxd(pb.StartLxdProgress_STARTED, "")
	}
}

func (s *Server) tryLxd(reset bool) error {
	ctx, cancel := context.WithTimeout(s.ctx, startWait)
	defer cancel()
	return s.lxd.start(ctx, reset)
}

// ensureLxd returns when Incus is there, which it starts when it must.
func (s *Server) ensureLxd(ctx context.Context) error {
	start, state := s.beginLxd(false)
	if state == pb.StartLxdResponse_ALREADY_RUNNING {
		ctx, cancel := context.WithTimeout(ctx, restartWait)
		defer cancel()
		return s.daemon.start(ctx)
	}
	select {
	case <-start.done:
		return start.err
	case <-ctx.Done():
		return fmt.Errorf("Incus is still starting: %w", ctx.Err())
	}
}

// isStarted tells whether Incus was started wholly.
func (s *Server) isStarted() bool {
	s.lxd.mu.Lock()
	defer s.lxd.mu.Unlock()
	return s.lxd.started
}

// startIncus starts Incus and gives it what containers need.
func (s *Server) startIncus(ctx context.Context, reset bool) error {
	set, err := readSettings(s.cfg.SettingsPath)
	if err != nil {
		return err
	}
	if reset {
		err = s.resetDatabase(ctx, set)
	} else if err = s.daemon.start(ctx); err == nil {
		err = s.configure(ctx, set, true)
	}
	if err != nil {
		return err
	}
	s.removeLeftovers(ctx)
	return nil
}

// configure makes the server, its pool, its bridge and the profile what
// containers need.
func (s *Server) configure(ctx context.Context, set settings, pool bool) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"server's settings", func() error {
			return s.incus.SetConfig(ctx, map[string]string{"core.shutdown_timeout": "0", "images.auto_update_interval": "0"})
		}},
		{"storage pool " + poolName, func() error {
			if !pool {
				return nil
			}
			return s.incus.EnsurePool(ctx, poolName, "btrfs", map[string]string{"source": s.cfg.poolDir()})
		}},
		{"bridge " + bridgeName, func() error { return s.incus.EnsureBridge(ctx, bridgeName, s.bridge(set)) }},
		{"profile " + profileName, func() error {
			config, devices := s.profile(pool)
			return s.incus.EnsureProfile(ctx, profileName, "Containers of this VM", config, devices)
		}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("cannot set up Incus' %s: %w", step.what, err)
		}
	}
	return nil
}

func (s *Server) bridge(set settings) map[string]string {
	return map[string]string{
		"ipv4.address":     set.bridgeAddress().String(),
		"ipv4.nat":         "true",
		"ipv4.dhcp.expiry": "infinite",
		"ipv6.address":     "none",
		"raw.dnsmasq":      "resolv-file=" + s.cfg.ResolvPath,
	}
}

// profile is what all containers have. Without a pool they have no disk.
func (s *Server) profile(pool bool) (map[string]string, incus.Devices) {
	devices := incus.Devices{
		"eth0":  {"type": "nic", "name": "eth0", "network": bridgeName},
		"tools": {"type": "disk", "source": s.cfg.ToolsDir, "path": "/opt/google/cros-containers", "readonly": "true", "required": "false"},
	}
	if pool {
		devices["root"] = map[string]string{"type": "disk", "path": "/", "pool": poolName}
	}
	return map[string]string{
		"raw.idmap":                  "both 1000 1000",
		"security.nesting":           "true",
		"boot.autostart":             "false",
		"boot.host_shutdown_timeout": "9",
	}, devices
}

// resetDatabase makes Incus' database anew from the containers on the disk, or
// goes back to the old one.
func (s *Server) resetDatabase(ctx context.Context, set settings) error {
	s.host.startLxd(pb.StartLxdProgress_RECOVERING, "")
	// It may run no more than any other program may have its files.
	if err := s.daemon.start(ctx); err != nil {
		s.log.Warn("Incus does not start from the database that is to go", "err", err)
	} else if err := s.stopAll(ctx); err != nil {
		s.log.Warn("containers run while the database is made anew", "err", err)
	}
	s.daemon.stop(unix.SIGTERM, stopGrace)
	// A new Incus does not take a bridge that it did not make.
	if err := removeBridge(); err != nil {
		return err
	}
	back, err := s.daemon.setDatabaseAside()
	if err != nil {
		return fmt.Errorf("cannot set Incus' database aside: %w", err)
	}
	n, err := s.recover(ctx, set)
	if err == nil {
		s.log.Info("Incus' database was made anew", "containers", n)
		return nil
	}
	s.log.Error("Incus' database cannot be made anew, going back to the old one", "err", err)
	s.daemon.stop(unix.SIGTERM, stopGrace)
	if err := removeBridge(); err != nil {
		s.log.Warn("the bridge stays as it is", "err", err)
	}
	if undo := back(); undo != nil {
		return errors.Join(err, fmt.Errorf("the old database cannot be put back: %w", undo))
	}
	if again := s.daemon.start(ctx); again != nil {
		return errors.Join(err, again)
	}
	return s.configure(ctx, set, true)
}

// removeBridge removes the containers' bridge.
func removeBridge() error {
	link, err := netlink.LinkByName(bridgeName)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the bridge %s: %w", bridgeName, err)
	}
	return nil
}

// recover makes a new database.
func (s *Server) recover(ctx context.Context, set settings) (int, error) {
	if err := s.daemon.start(ctx); err != nil {
		return 0, err
	}
	// The containers' network and profile must be there, and the pool must not.
	if err := s.configure(ctx, set, false); err != nil {
		return 0, err
	}
	n, err := s.incus.Recover(ctx, poolName, "btrfs", map[string]string{"source": s.cfg.poolDir()})
	if err != nil {
		return 0, fmt.Errorf("cannot take the containers of the disk over: %w", err)
	}
	return n, s.configure(ctx, set, true)
}

// stopAll stops every container.
func (s *Server) stopAll(ctx context.Context) error {
	all, err := s.incus.Instances(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, i := range all {
		if i.Status != incus.Stopped {
			failed = errors.Join(failed, s.incus.Stop(ctx, i.Name))
		}
	}
	return failed
}

// removeLeftovers removes what operations have left that did not end. What
// stays disturbs nobody but takes room.
func (s *Server) removeLeftovers(ctx context.Context) {
	all, err := s.incus.Instances(ctx)
	if err != nil {
		s.log.Error("leftovers are not looked for", "err", err)
		return
	}
	s.finishReplaced(ctx, all)
	if all, err = s.incus.Instances(ctx); err != nil {
		s.log.Error("leftovers are not looked for", "err", err)
		return
	}
	for _, i := range all {
		if strings.HasPrefix(i.Name, ownPrefix) {
			s.discard(ctx, i.Name)
			continue
		}
		s.removeSnapshots(ctx, i.Name)
	}
	if err := s.removeImages(ctx); err != nil {
		s.left.add("old images", err, s.removeImages)
	}
}
