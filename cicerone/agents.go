package cicerone

import (
	"context"
	"fmt"
	"strings"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
)

// What a request to a container's agent may have.
const (
	maxFiles    = 1024
	maxIcons    = 1024
	maxPlaybook = 1 << 20 // bytes
	// maxDescription bounds that of a package, in bytes.
	maxDescription = 64 << 10
)

// agent returns the connection with the agent of a container that runs.
func (s *Service) agent(sub policy.Subject, vmName, name string) (*vm, *container, *garcon.Client, error) {
	v, name, err := s.findContainer(sub, vmName, name)
	if err != nil {
		return nil, nil, nil, err
	}
	c, client, err := v.agent(name)
	return v, c, client, err
}

func (v *vm) agent(name string) (*container, *garcon.Client, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	c := v.containers[name]
	if c == nil || !c.running || c.garcon == nil {
		return nil, nil, fmt.Errorf("%w: container %q of VM %q, or its agent has not reported yet", ErrNotRunning, name, v.info.Name)
	}
	return c, c.garcon, nil
}

// session is what an agent says of its user.
type session struct {
	user, home string
	sftp       uint32
}

func (v *vm) session(ctx context.Context, client *garcon.Client) (session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	r, err := client.GetGarconSessionInfo(ctx, &cpb.GetGarconSessionInfoRequest{})
	if err != nil {
		return session{}, wire.Explain("ask the container's agent for its user", err)
	}
	if r.GetStatus() != cpb.GetGarconSessionInfoResponse_SUCCEEDED {
		return session{}, fmt.Errorf("ask the container's agent for its user: it says: %s", wire.Words(r.GetFailureReason()))
	}
	return session{user: wire.Text(r.GetContainerUsername(), 64), home: wire.Text(r.GetContainerHomedir(), 1024), sftp: r.GetSftpVsockPort()}, nil
}

func (v *vm) garconInfo(ctx context.Context, name string) (session, error) {
	_, client, err := v.agent(name)
	if err != nil {
		return session{}, err
	}
	return v.session(ctx, client)
}

// GetGarconSessionInfo returns the user of a container's session.
func (s *Service) GetGarconSessionInfo(ctx context.Context, sub policy.Subject, req *pb.GetGarconSessionInfoRequest) (*pb.GetGarconSessionInfoResponse, error) {
	notFound := func(err error) (*pb.GetGarconSessionInfoResponse, error) {
		return &pb.GetGarconSessionInfoResponse{Status: pb.GetGarconSessionInfoResponse_NOT_FOUND, FailureReason: err.Error()}, nil
	}
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return notFound(err)
	}
	_, client, err := v.agent(req.GetContainerName())
	if err != nil {
		return notFound(err)
	}
	i, err := v.session(ctx, client)
	if err != nil {
		return nil, err
	}
	return &pb.GetGarconSessionInfoResponse{Status: pb.GetGarconSessionInfoResponse_SUCCEEDED,
		ContainerUsername: i.user, ContainerHomedir: i.home, SftpVsockPort: i.sftp}, nil
}

// LaunchContainerApplication starts an application.
func (s *Service) LaunchContainerApplication(ctx context.Context, sub policy.Subject, req *pb.LaunchContainerApplicationRequest) (*pb.LaunchContainerApplicationResponse, error) {
	_, _, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	switch {
	case req.GetDesktopFileId() == "":
		return nil, fmt.Errorf("%w: desktop_file_id is empty", ErrInvalid)
	case len(req.GetFiles()) > maxFiles:
		return nil, fmt.Errorf("%w: %d files are more than %d", ErrInvalid, len(req.GetFiles()), maxFiles)
	}
	if err := checkArguments(append([]string{req.GetDesktopFileId()}, req.GetFiles()...)...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.LaunchApplication(ctx, &cpb.LaunchApplicationRequest{DesktopFileId: req.GetDesktopFileId(), Files: req.GetFiles(),
		DisplayScaling:    cpb.LaunchApplicationRequest_DisplayScaling(req.GetDisplayScaling()),
		ContainerFeatures: features(req.GetContainerFeatures())})
	if err != nil {
		return nil, wire.Explain("launch the application", err)
	}
	return &pb.LaunchContainerApplicationResponse{Success: r.GetSuccess(), FailureReason: wire.Words(r.GetFailureReason())}, nil
}

// features are the same numbers on both sides.
func features(fs []pb.ContainerFeature) []cpb.ContainerFeature {
	var out []cpb.ContainerFeature
	for _, f := range fs {
		if _, ok := cpb.ContainerFeature_name[int32(f)]; ok && len(out) < 16 {
			out = append(out, cpb.ContainerFeature(f))
		}
	}
	return out
}

// GetContainerAppIcon returns those icons that there are.
func (s *Service) GetContainerAppIcon(ctx context.Context, sub policy.Subject, req *pb.ContainerAppIconRequest) (*pb.ContainerAppIconResponse, error) {
	_, _, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	if n := len(req.GetDesktopFileIds()); n > maxIcons {
		return nil, fmt.Errorf("%w: %d icons at once are more than %d", ErrInvalid, n, maxIcons)
	}
	if err := checkArguments(req.GetDesktopFileIds()...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.GetIcon(ctx, &cpb.IconRequest{DesktopFileIds: req.GetDesktopFileIds(), IconSize: req.GetSize(), Scale: req.GetScale()})
	if err != nil {
		return nil, wire.Explain("get the icons", err)
	}
	asked := map[string]bool{}
	for _, id := range req.GetDesktopFileIds() {
		asked[id] = true
	}
	resp := &pb.ContainerAppIconResponse{}
	for _, i := range r.GetDesktopIcons() {
		if !asked[i.GetDesktopFileId()] {
			continue
		}
		asked[i.GetDesktopFileId()] = false
		format := pb.DesktopIcon_PNG
		if i.GetFormat() == cpb.DesktopIcon_SVG {
			format = pb.DesktopIcon_SVG
		}
		resp.Icons = append(resp.Icons, &pb.DesktopIcon{DesktopFileId: i.GetDesktopFileId(), Icon: i.GetIcon(), Format: format})
	}
	return resp, nil
}

// LaunchVshd has a container's shell server dial a port of the host.
func (s *Service) LaunchVshd(ctx context.Context, sub policy.Subject, req *pb.LaunchVshdRequest) (*pb.LaunchVshdResponse, error) {
	if req.GetPort() == 0 {
		return nil, fmt.Errorf("%w: port is 0", ErrInvalid)
	}
	v, _, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.LaunchVshd(ctx, &cpb.LaunchVshdRequest{Port: req.GetPort(), ContainerFeatures: features(req.GetContainerFeatures())})
	if err != nil {
		return nil, wire.Explain("start a shell server in the container", err)
	}
	return &pb.LaunchVshdResponse{Success: r.GetSuccess(), FailureReason: wire.Words(r.GetFailureReason()), Cid: v.info.CID}, nil
}

// RegisterVshSession remembers which shell in a container is whose.
func (s *Service) RegisterVshSession(_ context.Context, sub policy.Subject, req *pb.RegisterVshSessionRequest) (*pb.RegisterVshSessionResponse, error) {
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	_, c, _, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	if req.GetHostVshPid() <= 0 || req.GetContainerShellPid() < 0 {
		return nil, fmt.Errorf("%w: %d and %d are no process numbers", ErrInvalid, req.GetHostVshPid(), req.GetContainerShellPid())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.GetContainerShellPid() == 0 {
		delete(c.sessions, req.GetHostVshPid())
	} else if c.sessions[req.GetHostVshPid()] == 0 && len(c.sessions) >= maxSessions {
		return nil, fmt.Errorf("container %q has %d sessions, the most that are remembered", c.name, maxSessions)
	} else {
		c.sessions[req.GetHostVshPid()] = req.GetContainerShellPid()
	}
	return &pb.RegisterVshSessionResponse{Success: true}, nil
}

// GetVshSession tells which shell in a container belongs to a vsh.
func (s *Service) GetVshSession(_ context.Context, sub policy.Subject, req *pb.GetVshSessionRequest) (*pb.GetVshSessionResponse, error) {
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	_, c, _, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pid := c.sessions[req.GetHostVshPid()]
	if pid == 0 {
		return nil, fmt.Errorf("%w: no shell in container %q belongs to vsh %d", ErrNotFound, c.name, req.GetHostVshPid())
	}
	return &pb.GetVshSessionResponse{Success: true, ContainerShellPid: pid}, nil
}

// GetLinuxPackageInfo describes a package.
func (s *Service) GetLinuxPackageInfo(ctx context.Context, sub policy.Subject, req *pb.LinuxPackageInfoRequest) (*pb.LinuxPackageInfoResponse, error) {
	if (req.GetFilePath() == "") == (req.GetPackageName() == "") {
		return nil, fmt.Errorf("%w: either file_path or package_name", ErrInvalid)
	}
	if err := checkArguments(req.GetFilePath(), req.GetPackageName()); err != nil {
		return nil, err
	}
	_, _, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := client.GetLinuxPackageInfo(ctx, &cpb.LinuxPackageInfoRequest{FilePath: req.GetFilePath(), PackageName: req.GetPackageName()})
	if err != nil {
		return nil, wire.Explain("ask for the package", err)
	}
	return &pb.LinuxPackageInfoResponse{Success: r.GetSuccess(), FailureReason: wire.Words(r.GetFailureReason()),
		PackageId: wire.Text(r.GetPackageId(), 1024), License: wire.Text(r.GetLicense(), 1024), Description: cut(r.GetDescription(), maxDescription),
		ProjectUrl: wire.Text(r.GetProjectUrl(), 2048), Size: r.GetSize(), Summary: wire.Text(r.GetSummary(), 4096)}, nil
}

// cut is a guest's text of several lines, shortened to so many bytes.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}

// agentOp has an agent begin an operation. The call says whether the agent
// does it, and if not why.
func (v *vm) agentOp(o *operation, call func() error) error {
	if err := call(); err != nil {
		v.fail(o, err)
		return err
	}
	v.accepted(o)
	if ended, begun, err := v.outcome(o); ended && err != nil && !begun {
		return err
	}
	return nil
}

// InstallLinuxPackage begins to install a package.
func (s *Service) InstallLinuxPackage(ctx context.Context, sub policy.Subject, req *pb.InstallLinuxPackageRequest) (*pb.InstallLinuxPackageResponse, error) {
	if (req.GetFilePath() == "") == (req.GetPackageId() == "") {
		return nil, fmt.Errorf("%w: either file_path or package_id", ErrInvalid)
	}
	if err := checkArguments(req.GetFilePath(), req.GetPackageId(), req.GetCommandUuid()); err != nil {
		return nil, err
	}
	v, c, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	o, fresh, err := v.beginOp(opInstall, c.name)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return &pb.InstallLinuxPackageResponse{Status: pb.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE,
			FailureReason: "another package is being installed in this container"}, nil
	}
	s.mu.Lock()
	o.uuid = req.GetCommandUuid()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp := &pb.InstallLinuxPackageResponse{}
	err = v.agentOp(o, func() error {
		r, err := client.InstallLinuxPackage(ctx, &cpb.InstallLinuxPackageRequest{FilePath: req.GetFilePath(), PackageId: req.GetPackageId(), CommandUuid: req.GetCommandUuid()})
		if err != nil {
			return wire.Explain("install the package", err)
		}
		if r.GetStatus() == cpb.InstallLinuxPackageResponse_STARTED {
			return nil
		}
		resp.Status = pb.InstallLinuxPackageResponse_FAILED
		if r.GetStatus() == cpb.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE {
			resp.Status = pb.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE
		}
		return fmt.Errorf("install the package: the container says: %s", wire.Words(r.GetFailureReason()))
	})
	if err != nil {
		if resp.Status == pb.InstallLinuxPackageResponse_STARTED {
			resp.Status = pb.InstallLinuxPackageResponse_FAILED
		}
		resp.FailureReason = err.Error()
	}
	return resp, nil
}

// UninstallPackageOwningFile begins to remove the package of an application.
func (s *Service) UninstallPackageOwningFile(ctx context.Context, sub policy.Subject, req *pb.UninstallPackageOwningFileRequest) (*pb.UninstallPackageOwningFileResponse, error) {
	if req.GetDesktopFileId() == "" {
		return nil, fmt.Errorf("%w: desktop_file_id is empty", ErrInvalid)
	}
	if err := checkArguments(req.GetDesktopFileId()); err != nil {
		return nil, err
	}
	v, c, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	o, fresh, err := v.beginOp(opUninstall, c.name)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return &pb.UninstallPackageOwningFileResponse{Status: pb.UninstallPackageOwningFileResponse_BLOCKING_OPERATION_IN_PROGRESS,
			FailureReason: "another package is being removed in this container"}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp := &pb.UninstallPackageOwningFileResponse{}
	err = v.agentOp(o, func() error {
		r, err := client.UninstallPackageOwningFile(ctx, &cpb.UninstallPackageOwningFileRequest{DesktopFileId: req.GetDesktopFileId()})
		if err != nil {
			return wire.Explain("remove the package", err)
		}
		if r.GetStatus() == cpb.UninstallPackageOwningFileResponse_STARTED {
			return nil
		}
		resp.Status = pb.UninstallPackageOwningFileResponse_FAILED
		if r.GetStatus() == cpb.UninstallPackageOwningFileResponse_BLOCKING_OPERATION_IN_PROGRESS {
			resp.Status = pb.UninstallPackageOwningFileResponse_BLOCKING_OPERATION_IN_PROGRESS
		}
		return fmt.Errorf("remove the package: the container says: %s", wire.Words(r.GetFailureReason()))
	})
	if err != nil {
		if resp.Status == pb.UninstallPackageOwningFileResponse_STARTED {
			resp.Status = pb.UninstallPackageOwningFileResponse_FAILED
		}
		resp.FailureReason = err.Error()
	}
	return resp, nil
}

// ApplyAnsiblePlaybook begins to apply a playbook.
func (s *Service) ApplyAnsiblePlaybook(ctx context.Context, sub policy.Subject, req *pb.ApplyAnsiblePlaybookRequest) (*pb.ApplyAnsiblePlaybookResponse, error) {
	switch n := len(req.GetPlaybook()); {
	case n == 0:
		return nil, fmt.Errorf("%w: the playbook is empty", ErrInvalid)
	case n > maxPlaybook:
		return nil, fmt.Errorf("%w: a playbook of %d bytes is longer than %d", ErrInvalid, n, maxPlaybook)
	}
	v, c, client, err := s.agent(sub, req.GetVmName(), req.GetContainerName())
	if err != nil {
		return nil, err
	}
	o, fresh, err := v.beginOp(opAnsible, c.name)
	if err != nil {
		return nil, err
	}
	if !fresh {
		return nil, fmt.Errorf("another playbook is being applied in this container")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = v.agentOp(o, func() error {
		r, err := client.ApplyAnsiblePlaybook(ctx, &cpb.ApplyAnsiblePlaybookRequest{Playbook: req.GetPlaybook()})
		if err != nil {
			return wire.Explain("apply the playbook", err)
		}
		if r.GetStatus() != cpb.ApplyAnsiblePlaybookResponse_STARTED {
			return fmt.Errorf("apply the playbook: the container says: %s", wire.Words(r.GetFailureReason()))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.ApplyAnsiblePlaybookResponse{Status: pb.ApplyAnsiblePlaybookResponse_STARTED}, nil
}
