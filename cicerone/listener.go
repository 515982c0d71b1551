package cicerone

import (
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// A containerListener is what the agents in one VM's containers call.
type containerListener struct {
	cpb.UnimplementedContainerListenerServer
	v *vm
}

var heard = &vmtoolspb.EmptyMessage{}

// tokenLength is that of a UUID.
const tokenLength = 36

// check refuses what has no token of a container of this VM, and too much of
// what has one.
func (l containerListener) check(token string) (*container, error) {
	v := l.v
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	switch {
	case v.s.closed:
		return nil, status.Error(codes.Unavailable, errClosed.Error())
	case v.gone:
		return nil, status.Error(codes.FailedPrecondition, "the VM has stopped")
	}
	c, now := v.byToken(token), time.Now()
	// Neither who has no token nor one container takes the others' share.
	switch {
	case c == nil && !v.strangers.allow(now), c != nil && !(c.messages.allow(now) && v.messages.allow(now)):
		return nil, status.Error(codes.ResourceExhausted, "too many calls")
	case token == "":
		return nil, status.Error(codes.InvalidArgument, "the token is empty")
	case len(token) > tokenLength:
		return nil, status.Error(codes.InvalidArgument, "the token is longer than 36 bytes")
	case c == nil:
		return nil, status.Error(codes.FailedPrecondition, "the token is of no container of this VM")
	}
	return c, nil
}

// runs is check for what only a container may say whose agent has reported.
func (l containerListener) runs(token string) (*container, error) {
	c, err := l.check(token)
	if err != nil {
		return nil, err
	}
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	if !c.running || c.token != token {
		return nil, status.Error(codes.FailedPrecondition, "the agent of this container has not said that it is ready")
	}
	return c, nil
}

// tell has f tell something of the container with a token; f is called with mu
// held.
func (l containerListener) tell(token string, f func(v *vm, c *container) error) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(token)
	if err != nil {
		return nil, err
	}
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	if err := f(l.v, c); err != nil {
		return nil, err
	}
	return heard, nil
}

// report is tell for what the next run of this service has to know.
func (l containerListener) report(token string, f func(v *vm, c *container) error) (*vmtoolspb.EmptyMessage, error) {
	if _, err := l.tell(token, f); err != nil {
		return nil, err
	}
	return heard, l.v.told()
}

// ContainerReady takes up a container whose agent is up. An agent says it again
// when it has lost this service, and goes on with what it does: one at the same
// ports is the same process, for each chooses its own by chance.
func (l containerListener) ContainerReady(ctx context.Context, r *cpb.ContainerStartupInfo) (*vmtoolspb.EmptyMessage, error) {
	v, token, port := l.v, r.GetToken(), r.GetGarconPort()
	c, err := l.check(token)
	if err != nil {
		if status.Code(err) != codes.ResourceExhausted { // which there is no end of
			v.log.Warn("an agent without a valid token", "err", err)
		}
		return nil, err
	}
	if port < garcon.FirstPort || port > garcon.LastPort {
		return nil, status.Errorf(codes.InvalidArgument, "garcon_port %d is not one of %d to %d", port, garcon.FirstPort, garcon.LastPort)
	}
	address := ""
	if v.info.Containers {
		if address, err = v.addressOf(ctx, c.name); err != nil {
			v.log.Warn("an agent has reported from a container that does not run", "container", c.name, "err", err)
			return nil, status.Error(codes.FailedPrecondition, "the container does not run")
		}
	} else {
		address = v.info.Address
	}
	client := garcon.NewClient(v.dialer(port))
	who, err := v.session(ctx, client)
	if err != nil {
		client.Close()
		v.log.Warn("an agent has reported and cannot be called", "container", c.name, "port", port, "err", err)
		return nil, status.Error(codes.Unavailable, "the agent cannot be called")
	}
	v.s.mu.Lock()
	if v.gone || v.ctx.Err() != nil || v.containers[c.name] != c || c.token != token && c.pending != token {
		v.s.mu.Unlock()
		client.Close()
		return nil, status.Error(codes.FailedPrecondition, "the container has stopped meanwhile")
	}
	sftp := who.sftp
	if sftp == 0 {
		sftp = r.GetSftpPort()
	}
	unused := client
	if c.running && c.garcon != nil && c.token == token && c.port == port && c.sftp == sftp {
		client = c.garcon // which may be in the middle of a call
	} else {
		v.endOps(func(o *operation) bool { return o.kind.ofAgent() && o.container == c.name }, "the container's agent was started anew in the middle of it")
		v.uninhibit(c)
		unused = c.garcon
	}
	if c.pending == token {
		c.pending = ""
	}
	c.token, c.garcon, c.port, c.running, c.left = token, client, port, true, time.Time{}
	c.address, c.user, c.home, c.sftp = address, who.user, who.home, sftp
	c.reported++
	v.emit(SignalContainerStarted, &pb.ContainerStartedSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word,
		ContainerUsername: c.user, ContainerHomedir: c.home, Ipv4Address: c.address, SftpVsockPort: c.sftp, ContainerToken: token})
	v.notice()
	v.s.beginLocked(func() { v.setTimezone(c.name) })
	v.s.beginLocked(func() { v.watchAgain(c, client) })
	v.s.mu.Unlock()
	closeUnused(unused)
	v.save()
	return heard, nil
}

// addressOf returns the address of a container that runs. One that has just
// started may not have it yet; it is waited for a moment.
func (v *vm) addressOf(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for range 20 {
		r, err := v.tremplin.GetContainerInfo(ctx, &tpb.GetContainerInfoRequest{ContainerName: name})
		if err != nil {
			return "", wire.Explain("ask for the container's address", err)
		}
		if r.GetStatus() != tpb.GetContainerInfoResponse_RUNNING {
			return "", status.Errorf(codes.FailedPrecondition, "%s is %s", name, r.GetStatus())
		}
		if a := networkOrder(r.GetIpv4Address()); v.mayHave(a) {
			return a.String(), nil
		} else if !a.IsUnspecified() {
			v.log.Warn("the guest gives a container an address that is not of the containers' network; it counts as none",
				"container", name, "address", a, "network", v.info.ContainerSubnet)
			return "", nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return "", nil
		}
	}
	return "", nil
}

// mayHave says whether an address may be a container's: one elsewhere would lead
// its user to what is not the container, such as the host itself.
func (v *vm) mayHave(a netip.Addr) bool {
	if v.info.ContainerSubnet == "" {
		return a.IsGlobalUnicast()
	}
	p, err := netip.ParsePrefix(v.info.ContainerSubnet)
	return err == nil && p.Contains(a)
}

// networkOrder reads an address as the contract carries it.
func networkOrder(a uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], a)
	return netip.AddrFrom4(b)
}

// ContainerShutdown is an agent's word that it goes.
func (l containerListener) ContainerShutdown(_ context.Context, r *cpb.ContainerShutdownInfo) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	l.v.shutdown(c.name, true)
	return heard, nil
}

func (l containerListener) PendingUpdateApplicationListCalls(_ context.Context, r *cpb.PendingAppListUpdateCount) (*vmtoolspb.EmptyMessage, error) {
	return l.tell(r.GetToken(), func(v *vm, c *container) error {
		v.emit(SignalPendingAppListUpdates, &pb.PendingAppListUpdatesSignal{VmName: v.info.Name, ContainerName: c.name, Count: r.GetCount()})
		return nil
	})
}

// maxDetails is how many characters of a package manager's words are told.
const maxDetails = 4096

func (l containerListener) InstallLinuxPackageProgress(_ context.Context, r *cpb.InstallLinuxPackageProgressInfo) (*vmtoolspb.EmptyMessage, error) {
	details := wire.Text(r.GetFailureDetails(), maxDetails)
	return l.report(r.GetToken(), func(v *vm, c *container) error {
		if now := v.ops[opKey{opInstall, c.name}]; now != nil && r.GetCommandUuid() != "" && r.GetCommandUuid() != now.uuid {
			return nil // the one before's, told again
		}
		o := v.op(opInstall, c.name)
		if o == nil {
			return nil
		}
		// The numbers of both enumerations are the same.
		sig := &pb.InstallLinuxPackageProgressSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word,
			Status: pb.InstallLinuxPackageProgressSignal_Status(r.GetStatus()), ProgressPercent: min(r.GetProgressPercent(), 100),
			FailureDetails: details, CommandUuid: o.uuid}
		switch r.GetStatus() {
		case cpb.InstallLinuxPackageProgressInfo_DOWNLOADING, cpb.InstallLinuxPackageProgressInfo_INSTALLING:
			v.emit(SignalInstallLinuxPackageProgress, sig)
		case cpb.InstallLinuxPackageProgressInfo_SUCCEEDED, cpb.InstallLinuxPackageProgressInfo_FAILED:
			v.endOp(o, ended(r.GetStatus() == cpb.InstallLinuxPackageProgressInfo_SUCCEEDED, "the package was not installed", details),
				SignalInstallLinuxPackageProgress, sig)
		}
		return nil
	})
}

func (l containerListener) UninstallPackageProgress(_ context.Context, r *cpb.UninstallPackageProgressInfo) (*vmtoolspb.EmptyMessage, error) {
	details := wire.Text(r.GetFailureDetails(), maxDetails)
	return l.report(r.GetToken(), func(v *vm, c *container) error {
		o := v.op(opUninstall, c.name)
		if o == nil {
			return nil
		}
		sig := &pb.UninstallPackageProgressSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word,
			Status: pb.UninstallPackageProgressSignal_Status(r.GetStatus()), ProgressPercent: min(r.GetProgressPercent(), 100), FailureDetails: details}
		switch r.GetStatus() {
		case cpb.UninstallPackageProgressInfo_UNINSTALLING:
			v.emit(SignalUninstallPackageProgress, sig)
		case cpb.UninstallPackageProgressInfo_SUCCEEDED, cpb.UninstallPackageProgressInfo_FAILED:
			v.endOp(o, ended(r.GetStatus() == cpb.UninstallPackageProgressInfo_SUCCEEDED, "the package was not removed", details),
				SignalUninstallPackageProgress, sig)
		}
		return nil
	})
}

// maxLines bounds how many lines of a playbook's output are told at once,
// maxOutput how many bytes: more signals than one may wait to be sent.
const (
	maxLines  = 1024
	maxOutput = 64 << 10
)

// outputOf is a playbook's output as it is told.
func outputOf(all []string) (lines []string) {
	left := maxOutput
	for _, s := range all[:min(len(all), maxLines)] {
		s = wire.Text(s, maxDetails)
		if left -= len(s); left < 0 {
			return append(lines, "(cut)")
		}
		lines = append(lines, s)
	}
	return lines
}

func (l containerListener) ApplyAnsiblePlaybookProgress(_ context.Context, r *cpb.ApplyAnsiblePlaybookProgressInfo) (*vmtoolspb.EmptyMessage, error) {
	details := wire.Text(r.GetFailureDetails(), maxDetails)
	lines := outputOf(r.GetStatusString())
	return l.report(r.GetToken(), func(v *vm, c *container) error {
		o := v.op(opAnsible, c.name)
		if o == nil {
			return nil
		}
		sig := &pb.ApplyAnsiblePlaybookProgressSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word,
			Status: pb.ApplyAnsiblePlaybookProgressSignal_Status(r.GetStatus()), FailureDetails: details, StatusString: lines}
		switch r.GetStatus() {
		case cpb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS:
			v.emit(SignalApplyAnsiblePlaybookProgress, sig)
		case cpb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED, cpb.ApplyAnsiblePlaybookProgressInfo_FAILED:
			v.endOp(o, ended(r.GetStatus() == cpb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED, "the playbook was not applied", details),
				SignalApplyAnsiblePlaybookProgress, sig)
		}
		return nil
	})
}

func (l containerListener) FileWatchTriggered(_ context.Context, r *cpb.FileWatchTriggeredInfo) (*vmtoolspb.EmptyMessage, error) {
	return l.tell(r.GetToken(), func(v *vm, c *container) error {
		if watchPath(r.GetPath()) != nil {
			return status.Error(codes.InvalidArgument, "nobody could watch this path")
		}
		v.emit(SignalFileWatchTriggered, &pb.FileWatchTriggeredSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word, Path: r.GetPath()})
		return nil
	})
}

func (l containerListener) LowDiskSpaceTriggered(_ context.Context, r *cpb.LowDiskSpaceTriggeredInfo) (*vmtoolspb.EmptyMessage, error) {
	return l.tell(r.GetToken(), func(v *vm, c *container) error {
		v.emit(SignalLowDiskSpaceTriggered, &pb.LowDiskSpaceTriggeredSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word, FreeBytes: r.GetFreeBytes()})
		return nil
	})
}

func (l containerListener) InhibitScreensaver(_ context.Context, r *cpb.InhibitScreensaverInfo) (*vmtoolspb.EmptyMessage, error) {
	return l.tell(r.GetToken(), func(v *vm, c *container) error {
		if !c.inhibits[r.GetCookie()] && len(c.inhibits) >= maxInhibits {
			return status.Errorf(codes.ResourceExhausted, "more than %d inhibitions", maxInhibits)
		}
		c.inhibits[r.GetCookie()] = true
		v.saveSoon()
		v.emit(SignalInhibitScreensaver, &pb.InhibitScreensaverSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word,
			Cookie: uint32(r.GetCookie()), Client: wire.Text(r.GetClient(), 256), Reason: wire.Text(r.GetReason(), 256)})
		return nil
	})
}

func (l containerListener) UninhibitScreensaver(_ context.Context, r *cpb.UninhibitScreensaverInfo) (*vmtoolspb.EmptyMessage, error) {
	return l.tell(r.GetToken(), func(v *vm, c *container) error {
		if !c.inhibits[r.GetCookie()] {
			return nil
		}
		delete(c.inhibits, r.GetCookie())
		v.saveSoon()
		v.emit(SignalUninhibitScreensaver, &pb.UninhibitScreensaverSignal{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word, Cookie: uint32(r.GetCookie())})
		return nil
	})
}

// uninhibit gives back what nobody of a container will any more; mu is held.
func (v *vm) uninhibit(c *container) {
	for _, cookie := range slices.Sorted(maps.Keys(c.inhibits)) {
		v.emit(SignalUninhibitScreensaver, &pb.UninhibitScreensaverSignal{VmName: v.info.Name, ContainerName: c.name,
			OwnerId: v.info.Owner.Word, Cookie: uint32(cookie)})
	}
	clear(c.inhibits)
}

// maxMetrics bounds one report.
const maxMetrics = 32

// ReportMetrics checks what it is given; nothing is done with it.
func (l containerListener) ReportMetrics(_ context.Context, r *cpb.ReportMetricsRequest) (*cpb.ReportMetricsResponse, error) {
	if _, err := l.runs(r.GetToken()); err != nil {
		return nil, err
	}
	if len(r.GetMetric()) > maxMetrics {
		return nil, status.Errorf(codes.InvalidArgument, "%d metrics are more than %d", len(r.GetMetric()), maxMetrics)
	}
	for _, m := range r.GetMetric() {
		if !metricName(m.GetName()) {
			return nil, status.Error(codes.InvalidArgument, "the name of a metric is 1 to 64 of A-Z, a-z, 0-9, '.' and '-'")
		}
	}
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	if !l.v.metrics.allow(time.Now()) {
		return nil, status.Error(codes.ResourceExhausted, "more than 40 reports in a minute")
	}
	return &cpb.ReportMetricsResponse{}, nil
}

func metricName(s string) bool {
	for _, r := range []byte(s) {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 64
}
