package cicerone

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// GetContainerToken returns the token for a container's next start.
func (s *Service) GetContainerToken(_ context.Context, sub policy.Subject, req *pb.ContainerTokenRequest) (*pb.ContainerTokenResponse, error) {
	name, err := orDefault(req.GetContainerName())
	if err != nil {
		return nil, err
	}
	v, err := s.find(sub, req.GetVmName())
	if err != nil || !v.info.Containers {
		return &pb.ContainerTokenResponse{}, nil
	}
	token, _, err := v.nextToken(name)
	if err != nil {
		return nil, err
	}
	return &pb.ContainerTokenResponse{ContainerToken: token}, nil
}

// IsContainerRunning says whether a container's agent has reported.
func (s *Service) IsContainerRunning(_ context.Context, sub policy.Subject, req *pb.IsContainerRunningRequest) (*pb.IsContainerRunningResponse, error) {
	name, err := orDefault(req.GetContainerName())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &pb.IsContainerRunningResponse{}
	if v := s.vms[keyOf(sub.Owner, req.GetVmName())]; v != nil {
		c := v.containers[name]
		resp.ContainerRunning = c != nil && c.running
	}
	return resp, nil
}

// own returns the VMs of a subject's owner, in the order of their names.
func (s *Service) own(match func(*vm) bool) []*vm {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*vm
	for _, v := range s.vms {
		if match(v) {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b *vm) int {
		return strings.Compare(fmt.Sprint(a.key), fmt.Sprint(b.key))
	})
	return all
}

// maySee says whether a call that names no owner is about a VM.
func maySee(sub policy.Subject) func(*vm) bool {
	return func(v *vm) bool { return sub.Everybody || sub.Caller.UID == v.key.uid }
}

// ListRunningContainers returns an owner's containers that run.
func (s *Service) ListRunningContainers(_ context.Context, sub policy.Subject, _ *pb.ListRunningContainersRequest) (*pb.ListRunningContainersResponse, error) {
	vms := s.own(func(v *vm) bool {
		return v.key.uid == sub.Owner.UID && (sub.Owner.All || v.key.label == sub.Owner.Label)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &pb.ListRunningContainersResponse{}
	for _, v := range vms {
		for _, c := range v.sorted() {
			if c.running {
				resp.Containers = append(resp.Containers, &pb.ContainerInfo{VmName: v.info.Name, ContainerName: c.name, OsRelease: c.os, ContainerToken: c.token})
			}
		}
	}
	return resp, nil
}

// listed is how tremplin names a container among what it tells of itself. The
// contract has no call for a list; another tremplin has other words, and only
// the containers are known then that this service has made or started.
var listed = regexp.MustCompile(`(?m)^container ([a-z][a-z0-9-]{0,62}): `)

// unfinished begins the names of tremplin's own containers, which are not
// whole yet or not any more.
const unfinished = "auberge-"

// ListContainers returns the containers of a VM that runs, those that do not
// run as well.
func (s *Service) ListContainers(ctx context.Context, sub policy.Subject, vmName string) ([]map[string]any, error) {
	v, err := s.find(sub, vmName)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{defaultContainer: v.info.Containers}
	if v.info.Containers {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		r, err := v.tremplin.GetDebugInfo(ctx, &tpb.GetDebugInfoRequest{})
		cancel()
		if err == nil {
			for _, m := range listed.FindAllStringSubmatch(r.GetDebugInformation(), maxContainers) {
				names[m[1]] = true
			}
		}
	}
	s.mu.Lock()
	maps.Copy(names, v.names)
	for n := range v.containers {
		names[n] = true
	}
	s.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	some := make(chan struct{}, 8)
	var missing []string
	found := map[string]map[string]any{}
	for name, there := range names {
		if !there || strings.HasPrefix(name, unfinished) {
			continue
		}
		wg.Go(func() {
			some <- struct{}{}
			defer func() { <-some }()
			d, gone := v.describe(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if gone {
				missing = append(missing, name)
			} else if d != nil {
				found[name] = d
			}
		})
	}
	wg.Wait()
	if len(missing) > 0 {
		s.mu.Lock()
		for _, n := range missing {
			if v.containers[n] == nil {
				delete(v.names, n)
			}
		}
		s.mu.Unlock()
	}
	list := []map[string]any{}
	for _, n := range slices.Sorted(maps.Keys(found)) {
		list = append(list, found[n])
	}
	return list, nil
}

// describe is a container in plain values; gone says that there is none.
func (v *vm) describe(ctx context.Context, name string) (d map[string]any, gone bool) {
	v.s.mu.Lock()
	d = map[string]any{"name": name, "running": false, "status": "unknown"}
	if c := v.containers[name]; c != nil {
		if d["running"] = c.running; c.running {
			d["status"], d["address"], d["user"], d["home"] = "running", c.address, c.user, c.home
		}
		if c.os != nil {
			d["os"] = c.os.GetPrettyName()
		}
	}
	v.s.mu.Unlock()
	if !v.info.Containers {
		return d, false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	r, err := v.tremplin.GetContainerInfo(ctx, &tpb.GetContainerInfoRequest{ContainerName: name})
	switch {
	case err != nil || r.GetStatus() == tpb.GetContainerInfoResponse_FAILED:
		if name == defaultContainer && d["running"] == false {
			v.s.mu.Lock()
			known := v.names[name]
			v.s.mu.Unlock()
			if !known {
				return nil, false // nobody knows whether it is there
			}
		}
	case r.GetStatus() == tpb.GetContainerInfoResponse_NOT_FOUND:
		return nil, true
	case r.GetStatus() == tpb.GetContainerInfoResponse_RUNNING:
		if d["running"] == false {
			d["status"] = "starting" // its agent has not reported
		}
	case r.GetStatus() == tpb.GetContainerInfoResponse_STOPPED:
		d["status"] = "stopped"
	}
	return d, false
}

// ListApplications returns what a container's agent has told last.
func (s *Service) ListApplications(_ context.Context, sub policy.Subject, vmName, name string) (*appspb.ApplicationList, error) {
	v, c, _, err := s.agent(sub, vmName, name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	data := c.kept[appList]
	s.mu.Unlock()
	if data == nil {
		return &appspb.ApplicationList{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word, VmType: v.appType()}, nil
	}
	list := &appspb.ApplicationList{}
	return list, proto.Unmarshal(data, list)
}

// GetServiceInfo returns how the service stands.
func (s *Service) GetServiceInfo(_ context.Context, sub policy.Subject) (map[string]any, error) {
	vms := s.own(maySee(sub))
	s.mu.Lock()
	defer s.mu.Unlock()
	running, ops := 0, 0
	for _, v := range vms {
		ops += len(v.ops)
		for _, c := range v.containers {
			if c.running {
				running++
			}
		}
	}
	return map[string]any{"vms": uint32(len(vms)), "containers": uint32(running), "operations": uint32(ops)}, nil
}

// maxDebug bounds what one guest tells for people who look for a fault.
const maxDebug = 256 << 10

// maxDebugVM is how long a VM's text may be before its agents are not asked
// any more.
const maxDebugVM = 1 << 20

// GetDebugInformation describes VMs and what their agents say of themselves.
func (s *Service) GetDebugInformation(ctx context.Context, sub policy.Subject, _ *pb.GetDebugInformationRequest) (*pb.GetDebugInformationResponse, error) {
	vms := s.own(maySee(sub))
	parts := make([]string, len(vms))
	var wg sync.WaitGroup
	for i, v := range vms {
		wg.Go(func() { parts[i] = v.debug(ctx) })
	}
	wg.Wait()
	const limit = 3 << 20 // a message on the bus is not longer than 4 MiB
	text := strings.Join(parts, "\n")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "\n(cut)\n"
	}
	return &pb.GetDebugInformationResponse{DebugInformation: text}, nil
}

func (v *vm) debug(ctx context.Context) string {
	var b strings.Builder
	v.s.mu.Lock()
	fmt.Fprintf(&b, "VM %s of owner %s, CID %d, %s, tremplin ready: %t\n", v.info.Name, v.info.Owner.Word, v.info.CID, v.info.Type, v.ready)
	for _, o := range v.ops {
		of := ""
		if o.container != "" {
			of = " of container " + o.container
		}
		fmt.Fprintf(&b, "  operation %s%s\n", o.kind, of)
	}
	all := v.sorted()
	type one struct {
		head, name string
	}
	var list []one
	for _, c := range all {
		list = append(list, one{fmt.Sprintf("  container %s, running: %t, address: %s, port: %d\n", c.name, c.running, c.address, c.port), c.name})
	}
	v.s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	if v.info.Containers {
		r, err := v.tremplin.GetDebugInfo(ctx, &tpb.GetDebugInfoRequest{})
		indent(&b, r.GetDebugInformation(), wire.Explain("ask tremplin", err))
	}
	for _, c := range list {
		b.WriteString(c.head)
		if b.Len() > maxDebugVM {
			b.WriteString("    (too long already)\n")
			continue
		}
		if _, client, err := v.agent(c.name); err == nil {
			r, err := client.GetDebugInformation(ctx, &cpb.GetDebugInformationRequest{})
			indent(&b, r.GetDebugInformation(), wire.Explain("ask the agent", err))
		}
	}
	return b.String()
}

// indent writes a guest's text beneath what is known of it.
func indent(b *strings.Builder, text string, err error) {
	if err != nil {
		text = err.Error()
	}
	if len(text) > maxDebug {
		text = strings.ToValidUTF8(text[:maxDebug], "") + "\n(cut)"
	}
	for l := range strings.Lines(text) {
		fmt.Fprintf(b, "    %s\n", wire.Text(strings.TrimRight(l, "\n"), 1000))
	}
}
