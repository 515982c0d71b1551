package concierge

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/concierge/host"
	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// watchHost passes on what guests have to know of the host, for as long as the
// service runs. Guests that ran before are told first: nobody did while the
// service was away.
func (s *Service) watchHost(w *host.Watcher) {
	s.eachAwake(everyone, func(v *vm) { s.refresh(s.quit, v) })
	s.stopRemoved(s.quit)
	w.Run(s.quit, s.hostChanged)
}

// hostChanges counts the changes of the host, so that a VM which could not be
// told of one can be told later.
type hostChanges struct{ all, network, clock uint64 }

// changesSoFar is to be asked for before a guest is told how the host is.
func (s *Service) changesSoFar() hostChanges {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hostChanges
}

func (s *Service) hostChanged(c host.Change) {
	s.log.Info("the host has changed", "what", c.String())
	if c == host.UsersChanged { // none of the guests' business
		s.stopRemoved(s.quit)
		return
	}
	s.mu.Lock()
	s.hostChanges.all++
	if c == host.NetworkChanged {
		s.hostChanges.network++
	}
	s.mu.Unlock()
	switch c {
	case host.TimezoneChanged:
		s.eachAwake(everyone, func(v *vm) { s.refreshTimezone(s.quit, v) })
	case host.DNSChanged:
		dns, err := s.cfg.Host.DNS()
		if err != nil {
			s.log.Warn("read the host's name servers", "err", err)
			return
		}
		s.cfg.Events.Emit(0, "DnsSettingsChanged", dnsSettings(dns))
		s.eachAwake(everyone, func(v *vm) { s.refreshResolver(s.quit, v) })
	case host.NetworkChanged:
		s.eachAwake(everyone, func(v *vm) { s.tellNetworkChanged(s.quit, v) })
	}
}

func (s *Service) tellNetworkChanged(ctx context.Context, v *vm) {
	if v.network() == nil {
		return
	}
	if err := within(ctx, agentTimeout, v.agent.HostNetworkChanged); err != nil {
		v.log.Warn("tell the guest", "err", err)
	}
}

// catchUp tells a guest what has changed while it was being set up and was not
// among those who are told.
func (s *Service) catchUp(ctx context.Context, v *vm, since hostChanges) {
	now := s.changesSoFar()
	if now.all != since.all {
		s.refresh(ctx, v)
	}
	if now.network != since.network {
		s.tellNetworkChanged(ctx, v)
	}
	if now.clock != since.clock {
		s.tellTime(ctx, v)
	}
}

func dnsSettings(d host.DNS) *pb.DnsSettings {
	return &pb.DnsSettings{Nameservers: d.NameServers, SearchDomains: d.SearchDomains}
}

// GetDnsSettings tells the host's name servers and search domains.
func (s *Service) GetDnsSettings(context.Context, policy.Subject) (*pb.DnsSettings, error) {
	d, err := s.cfg.Host.DNS()
	if err != nil {
		return nil, err
	}
	return dnsSettings(d), nil
}

// refresh tells a guest how the host is now.
func (s *Service) refresh(ctx context.Context, v *vm) {
	s.refreshTimezone(ctx, v)
	s.refreshResolver(ctx, v)
}

// refreshTimezone gives a guest the host's time zone. A guest can live with
// another one, so a failure is only logged.
func (s *Service) refreshTimezone(ctx context.Context, v *vm) {
	zone, err := s.cfg.Host.Timezone()
	if err == nil {
		err = within(ctx, agentTimeout, func(ctx context.Context) error { return v.agent.SetTimezone(ctx, zone) })
	}
	if err != nil {
		v.log.Warn("the guest keeps its time zone", "err", err)
	}
}

func (s *Service) refreshResolver(ctx context.Context, v *vm) {
	n := v.network()
	if n == nil {
		return
	}
	if err := s.setResolver(ctx, v, n); err != nil {
		v.log.Warn("the guest keeps its name servers", "err", err)
	}
}

// setResolver gives a guest its network's name servers and the host's search
// domains.
func (s *Service) setResolver(ctx context.Context, v *vm, n *vmm.Network) error {
	dns, err := s.cfg.Host.DNS()
	if err != nil {
		v.log.Warn("the guest gets no search domains", "err", err)
	}
	servers, err := nameServers(n, dns)
	if err != nil {
		v.log.Warn("the guest gets no name servers", "err", err)
	}
	return within(ctx, agentTimeout, func(ctx context.Context) error {
		return v.agent.SetResolver(ctx, guestlink.Resolver{NameServers: servers, SearchDomains: dns.SearchDomains})
	})
}

// network is the VM's, nil when it has none.
func (v *vm) network() *vmm.Network {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.machine == nil {
		return nil
	}
	return v.machine.Spec.Network
}

// What is free on the disk that holds the images, in bytes, where it begins to
// be little, as on ChromeOS.
const (
	lowSpace      = 1 << 30
	criticalSpace = 512 << 20
	// spaceStep is a change worth telling.
	spaceStep = 64 << 20
)

func spaceState(free int64) guestlink.DiskSpace {
	switch {
	case free < criticalSpace:
		return guestlink.DiskSpaceCritical
	case free < lowSpace:
		return guestlink.DiskSpaceLow
	}
	return guestlink.DiskSpaceNormal
}

// watchSpace looks at the free space of the image store now and then, and
// tells the guests whose sparse disks may grow: they set aside what the host
// has not got.
func (s *Service) watchSpace() {
	tick := time.NewTicker(s.cfg.SpaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.quit.Done():
			return
		case <-tick.C:
		}
		free, err := freeSpace(s.disksDir())
		if err != nil {
			s.log.Warn("look at the free space of the image store", "err", err)
			continue
		}
		s.eachAwake(everyone, func(v *vm) { s.tellSpace(s.quit, v, free) })
	}
}

func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// tellSpace tells a guest of the free space when it differs from what it was
// told last.
func (s *Service) tellSpace(ctx context.Context, v *vm, free int64) {
	v.mu.Lock()
	sparse, told, last := v.sparse, v.spaceTold, v.space
	v.mu.Unlock()
	diff := max(free-last, last-free)
	if !sparse || told && spaceState(free) == spaceState(last) && (diff < spaceStep || diff < free/20) {
		return
	}
	err := within(ctx, agentTimeout, func(ctx context.Context) error {
		return v.agent.UpdateStorageBalloon(ctx, free, spaceState(free))
	})
	if err != nil {
		v.log.Warn("the guest does not know how much space there is", "err", err)
	}
	// Not asked again before something changes, even by a guest that cannot.
	v.mu.Lock()
	v.spaceTold, v.space = true, free
	v.mu.Unlock()
}
