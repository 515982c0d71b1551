package maitred

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/google/renameio/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// terminaPath is where the containers' manager finds what StartTermina was
// told, as variables of a shell.
const terminaPath = "/run/auberge/termina.env"

// StartTermina mounts the stateful disk, formatting it when it holds no file
// system, and makes the file system as large as the disk. A second call finds
// it mounted and changes nothing there. What the request says of containers is
// left at terminaPath for their manager, which is started.
func (s *Server) StartTermina(ctx context.Context, req *pb.StartTerminaRequest) (*pb.StartTerminaResponse, error) {
	device := req.StatefulDevice
	if !strings.HasPrefix(device, "/dev/") || hasNUL(device) {
		return nil, invalid("StartTermina: the stateful_device %q is not a path below /dev", device)
	}
	settings, err := terminaSettings(req)
	if err != nil {
		return nil, err
	}
	if err := core.CheckBlockDevice(device); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "StartTermina: there is no disk at the stateful_device %s: %v", device, err)
	}
	s.storage.Lock()
	defer s.storage.Unlock()
	if err := s.mountStateful(ctx, device); err != nil {
		if status.Code(err) == codes.FailedPrecondition {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, failure(ctx, err)
		}
		s.log.Error("the stateful disk was not mounted", "device", device, "err", err)
		return &pb.StartTerminaResponse{MountResult: pb.StartTerminaResponse_FAILURE, FreeBytes: -1}, nil
	}
	s.keepSettings(req, settings)
	s.startContainers(ctx, settings)
	resp := &pb.StartTerminaResponse{MountResult: s.stateful, FreeBytes: -1}
	free, err := core.FreeBytes(s.statefulDir)
	if err != nil {
		s.log.Error("the stateful file system is mounted", "err", err)
		return resp, nil
	}
	resp.FreeBytes, resp.FreeBytesHasValue = free, true
	return resp, nil
}

// mountStateful mounts the stateful disk unless it is, and notes how it went
// in s.stateful.
func (s *Server) mountStateful(ctx context.Context, device string) error {
	mounted, same, err := core.MountedFrom(s.statefulDir, device)
	switch {
	case err != nil:
		return err
	case mounted && !same:
		return status.Errorf(codes.FailedPrecondition, "StartTermina: another disk than %s is mounted at %s", device, s.statefulDir)
	case mounted:
		return nil
	}
	// This fails on every disk but a new one, and mounting tells which it was.
	formatErr := core.MakeBtrfs(ctx, s.table, device)
	if formatErr == nil {
		s.log.Info("formatted the stateful disk", "device", device)
	}
	m := core.MountPoint{Source: device, Target: s.statefulDir, Type: "btrfs", Options: "user_subvol_rm_allowed,discard"}
	err = m.MakeAndMount()
	if err == nil {
		s.stateful = pb.StartTerminaResponse_SUCCESS
		s.takeOver(ctx)
		return nil
	}
	s.log.Warn("trying older roots of the stateful disk", "err", err)
	m.Options += ",usebackuproot"
	if m.Mount() == nil {
		s.stateful = pb.StartTerminaResponse_PARTIAL_DATA_LOSS
		s.takeOver(ctx)
		return nil
	}
	if formatErr != nil {
		return fmt.Errorf("%w; it was not formatted either: %v", err, formatErr)
	}
	return err
}

// takeOver makes a file system that has just been mounted as large as its
// disk, and removes the balloon of an earlier boot: the host's disk may have
// room again by now, and the host says so only when that changes.
func (s *Server) takeOver(ctx context.Context) {
	if err := s.balloon().Remove(); err != nil {
		s.log.Error("space stays withheld", "err", err)
	}
	if err := core.GrowBtrfs(ctx, s.table, s.statefulDir); err != nil {
		s.log.Error("the stateful file system does not use its whole disk", "err", err)
	}
}

// terminaSettings makes variables of what the request says of containers;
// what it leaves out is no variable.
func terminaSettings(req *pb.StartTerminaRequest) ([]string, error) {
	settings := []string{fmt.Sprintf("ALLOW_PRIVILEGED_CONTAINERS=%t", req.AllowPrivilegedContainers)}
	if text := req.LxdIpv4Subnet; text != "" {
		subnet, err := netip.ParsePrefix(text)
		if err != nil || !subnet.Addr().Is4() {
			return nil, invalid("StartTermina: the lxd_ipv4_subnet %q is not of the form a.b.c.d/prefix", text)
		}
		// The bridge and at least one container.
		if a := subnet.Addr(); subnet.Bits() < 8 || subnet.Bits() > 30 || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
			return nil, invalid("StartTermina: containers cannot have the network %s", subnet)
		}
		settings = append(settings, "LXD_IPV4_SUBNET="+subnet.String())
	}
	if req.TremplinIpv4Address != 0 {
		settings = append(settings, "TREMPLIN_IPV4_ADDRESS="+addrOf(req.TremplinIpv4Address).String())
	}
	var features []string
	for _, f := range req.Feature {
		if name, ok := pb.StartTerminaRequest_Feature_name[int32(f)]; ok && f != pb.StartTerminaRequest_UNKNOWN {
			features = append(features, name)
		}
	}
	if slices.Sort(features); len(features) > 0 {
		settings = append(settings, "FEATURES="+strings.Join(slices.Compact(features), ","))
	}
	return settings, nil
}

// keepSettings leaves the settings for the containers' manager, and says what
// nobody will make use of.
func (s *Server) keepSettings(req *pb.StartTerminaRequest, settings []string) {
	for _, f := range req.Feature {
		if _, ok := pb.StartTerminaRequest_Feature_name[int32(f)]; !ok || f == pb.StartTerminaRequest_UNKNOWN {
			s.log.Warn("a feature of containers is ignored: this agent does not know it", "feature", int32(f))
		}
	}
	path := s.root + terminaPath
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = renameio.WriteFile(path, []byte(strings.Join(settings, "\n")+"\n"), 0o644)
	}
	if err != nil {
		s.log.Error("the containers' manager will not know its settings", "err", err)
	}
}
