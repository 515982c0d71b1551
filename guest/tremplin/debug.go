package tremplin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"golang.org/x/sys/unix"
)

const (
	maxDebug  = 256 << 10
	debugWait = 20 * time.Second
)

// GetDebugInfo describes the containers and what keeps them. It starts
// nothing, and no secret is in it.
func (s *Server) GetDebugInfo(ctx context.Context, _ *pb.GetDebugInfoRequest) (*pb.GetDebugInfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, debugWait)
	defer cancel()
	var b strings.Builder
	fmt.Fprintf(&b, "tremplin: Incus started: %t\n", s.isStarted())
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.IncusDir, &st); err == nil {
		fmt.Fprintf(&b, "disk: %d of %d MiB free\n", st.Bavail*uint64(st.Bsize)>>20, st.Blocks*uint64(st.Bsize)>>20)
	}
	if s.isStarted() {
		s.debugIncus(ctx, &b)
	}
	text := b.String()
	return &pb.GetDebugInfoResponse{DebugInformation: strings.ToValidUTF8(text[:min(len(text), maxDebug)], "?")}, nil
}

func (s *Server) debugIncus(ctx context.Context, b *strings.Builder) {
	server, err := s.incus.Server(ctx)
	if err != nil {
		fmt.Fprintf(b, "Incus does not answer: %v\n", err)
		return
	}
	fmt.Fprintf(b, "Incus: %s, pid %d\n", server.Environment.Version, server.Environment.PID)
	all, err := s.incus.Instances(ctx)
	if err != nil {
		fmt.Fprintf(b, "containers: %v\n", err)
	}
	for _, i := range all {
		fmt.Fprintf(b, "container %s: %s, %s, image %s\n", i.Name, i.Status, i.Architecture, i.Config["volatile.base_image"])
	}
	images, err := s.incus.Images(ctx)
	if err != nil {
		fmt.Fprintf(b, "images: %v\n", err)
	}
	for _, i := range images {
		fmt.Fprintf(b, "image %s: %s, %d MiB, %s\n", i.Fingerprint, i.Architecture, i.Size>>20, i.Properties["description"])
	}
}

var dnsmasqPID = regexp.MustCompile(`(?m)^pid: (\d+)$`)

// HostNetworkChanged makes the containers' name server read its resolvers
// again. Their addresses are the VM's own affair.
func (s *Server) HostNetworkChanged(context.Context, *pb.HostNetworkChangedRequest) (*pb.HostNetworkChangedResponse, error) {
	if err := s.reloadResolvers(); err != nil {
		s.log.Warn("the containers' name server was not told of the host's network", "err", err)
	}
	return &pb.HostNetworkChangedResponse{}, nil
}

func (s *Server) reloadResolvers() error {
	data, err := os.ReadFile(filepath.Join(s.cfg.IncusDir, "networks", bridgeName, "dnsmasq.pid"))
	if os.IsNotExist(err) {
		return nil // there are no containers yet
	}
	if err != nil {
		return err
	}
	m := dnsmasqPID.FindSubmatch(data)
	if m == nil {
		return fmt.Errorf("dnsmasq.pid is not understood")
	}
	pid, _ := strconv.Atoi(string(m[1]))
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || strings.TrimSpace(string(comm)) != "dnsmasq" {
		return fmt.Errorf("the process %d is no dnsmasq any more", pid)
	}
	return unix.Kill(pid, unix.SIGHUP)
}
