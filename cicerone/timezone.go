package cicerone

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

var zoneName = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)

// SetTimezone sets the clocks of all containers that run.
func (s *Service) SetTimezone(ctx context.Context, sub policy.Subject, req *pb.SetTimezoneRequest) (*pb.SetTimezoneResponse, error) {
	name := req.GetTimezoneName()
	if len(name) > 128 || !zoneName.MatchString(name) {
		return nil, fmt.Errorf("%w: %q is no name of a time zone, such as Europe/Paris", ErrInvalid, wire.Text(name, 128))
	}
	posix, err := s.posixZone(name)
	if err != nil {
		return nil, fmt.Errorf("%w: time zone %q: %w", ErrInvalid, name, err)
	}
	resp := &pb.SetTimezoneResponse{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, v := range s.own(maySee(sub)) {
		if !v.info.Containers {
			continue
		}
		wg.Go(func() {
			n, reasons, err := v.sendTimezone(ctx, name, posix, nil)
			if err != nil {
				reasons = []string{err.Error()}
			}
			mu.Lock()
			defer mu.Unlock()
			resp.Successes += n
			resp.FailureReasons = append(resp.FailureReasons, reasons...)
		})
	}
	wg.Wait()
	return resp, nil
}

// TimezoneChanged gives all containers the time zone that the host has now.
func (s *Service) TimezoneChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones++
	zones := s.zones
	for _, v := range s.vms {
		if v.info.Containers {
			s.beginLocked(func() { v.followTimezone(zones) })
		}
	}
}

// followTimezone gives a VM's containers the host's time zone. A VM that does
// not answer, because it is suspended for instance, gets it later, unless a
// later change comes first. One whose tremplin is not up needs nothing: its
// containers get it when they start.
func (v *vm) followTimezone(zones uint64) {
	tick := time.NewTicker(v.s.cfg.WatchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		v.s.mu.Lock()
		over := v.gone || !v.ready || v.s.zones != zones
		v.s.mu.Unlock()
		if over {
			return
		}
		err := v.hostTimezone(nil)
		if err == nil || v.ctx.Err() != nil {
			return
		}
		if first {
			v.log.Warn("the containers of a VM do not get the host's time zone yet", "err", err)
		}
		select {
		case <-tick.C:
		case <-v.ctx.Done():
			return
		}
	}
}

// sendTimezone sets the clocks of some containers, of all when none are named.
func (v *vm) sendTimezone(ctx context.Context, name, posix string, containers []string) (int32, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.tremplin.SetTimezone(ctx, &tpb.SetTimezoneRequest{TimezoneName: name, PosixTzString: posix, ContainerNames: containers})
	if err != nil {
		return 0, nil, fmt.Errorf("VM %s: %w", v.info.Name, wire.Explain("set the time zone of its containers", err))
	}
	var reasons []string
	for _, why := range r.GetFailureReasons()[:min(len(r.GetFailureReasons()), maxContainers)] {
		reasons = append(reasons, fmt.Sprintf("VM %s: %s", v.info.Name, wire.Words(why)))
	}
	return max(0, min(r.GetSuccesses(), 4*maxContainers)), reasons, nil
}

// setTimezone gives a container that has started the host's time zone.
func (v *vm) setTimezone(container string) {
	if !v.info.Containers {
		return
	}
	if err := v.hostTimezone([]string{container}); err != nil && v.ctx.Err() == nil {
		v.log.Warn("a container does not get the host's time zone", "container", container, "err", err)
	}
}

// hostTimezone gives containers, all when none are named, the host's time zone.
// It fails when the VM does not answer; that a container cannot have the zone is
// only logged.
func (v *vm) hostTimezone(containers []string) error {
	if v.s.cfg.Timezone == nil {
		return nil
	}
	name, err := v.s.cfg.Timezone()
	if err != nil {
		v.log.Warn("containers do not get the host's time zone", "err", err)
		return nil
	}
	posix, err := v.s.posixZone(name)
	if err != nil {
		v.log.Info("the host's time zone has no rules in words", "zone", name, "err", err)
	}
	_, reasons, err := v.sendTimezone(v.ctx, name, posix, containers)
	if len(reasons) > 0 {
		v.log.Warn("containers did not take the host's time zone", "containers", containers, "reasons", reasons)
	}
	return err
}

// posixZone returns a zone in the form of TZ: the last line of its file.
func (s *Service) posixZone(name string) (string, error) {
	if !zoneName.MatchString(name) {
		return "", fmt.Errorf("no name of a time zone")
	}
	f, err := os.Open(filepath.Join(s.cfg.ZoneDir, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 256<<10))
	if err != nil {
		return "", err
	}
	if !bytes.HasPrefix(data, []byte("TZif")) {
		return "", fmt.Errorf("%s is no zone file", f.Name())
	}
	line := strings.TrimSuffix(string(data), "\n")
	line = line[strings.LastIndexByte(line, '\n')+1:]
	if len(line) > 128 || strings.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", nil // files of the first version have none
	}
	return line, nil
}
