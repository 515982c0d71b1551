package garcon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// clip keeps a text for people short and valid.
func clip(text string) string {
	const most = 16 << 10
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// LaunchApplication starts a program of a .desktop file.
func (s *server) LaunchApplication(ctx context.Context, req *pb.LaunchApplicationRequest) (*pb.LaunchApplicationResponse, error) {
	if s.parts.Applications == nil {
		return nil, status.Error(codes.Unavailable, "LaunchApplication: this agent has no applications")
	}
	return s.parts.Applications.LaunchApplication(ctx, req)
}

// GetIcon returns icons.
func (s *server) GetIcon(ctx context.Context, req *pb.IconRequest) (*pb.IconResponse, error) {
	if s.parts.Icons == nil {
		return nil, status.Error(codes.Unavailable, "GetIcon: this agent has no icons")
	}
	return s.parts.Icons.GetIcon(ctx, req)
}

// LaunchVshd has a shell server dial the host.
func (s *server) LaunchVshd(_ context.Context, req *pb.LaunchVshdRequest) (*pb.LaunchVshdResponse, error) {
	if err := s.shells.Launch(req.GetPort(), session.Environ(s.environ, req.GetContainerFeatures(), nil)); err != nil {
		return &pb.LaunchVshdResponse{FailureReason: s.reason("LaunchVshd", err)}, nil
	}
	return &pb.LaunchVshdResponse{Success: true}, nil
}

// GetLinuxPackageInfo tells what a package is.
func (s *server) GetLinuxPackageInfo(ctx context.Context, req *pb.LinuxPackageInfoRequest) (*pb.LinuxPackageInfoResponse, error) {
	var d packagekit.Details
	var err error
	switch file, name := req.GetFilePath(), req.GetPackageName(); {
	case file != "" && name != "":
		err = errors.New("the request gives both a file and the name of a package")
	case file != "":
		d, err = s.packages.OfFile(ctx, file)
	case name != "":
		d, err = s.packages.Named(ctx, name)
	default:
		err = errors.New("the request gives neither a file nor the name of a package")
	}
	if err != nil {
		return &pb.LinuxPackageInfoResponse{FailureReason: s.reason("GetLinuxPackageInfo", err)}, nil
	}
	return &pb.LinuxPackageInfoResponse{
		Success:     true,
		PackageId:   d.ID,
		License:     d.License,
		Description: d.Description,
		ProjectUrl:  d.URL,
		Size:        d.Size,
		Summary:     d.Summary,
	}, nil
}

// InstallLinuxPackage begins an installation.
func (s *server) InstallLinuxPackage(ctx context.Context, req *pb.InstallLinuxPackageRequest) (*pb.InstallLinuxPackageResponse, error) {
	var err error
	switch file, id := req.GetFilePath(), req.GetPackageId(); {
	case file != "" && id != "":
		err = errors.New("the request gives both a file and a package id")
	case file != "":
		err = s.operations.InstallFile(ctx, file, req.GetCommandUuid())
	case id != "":
		err = s.operations.InstallPackage(ctx, id, req.GetCommandUuid())
	default:
		err = errors.New("the request gives neither a file nor a package id")
	}
	resp := &pb.InstallLinuxPackageResponse{Status: pb.InstallLinuxPackageResponse_STARTED}
	if err != nil {
		resp.Status = pb.InstallLinuxPackageResponse_FAILED
		if errors.Is(err, packagekit.ErrBusy) {
			resp.Status = pb.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE
		}
		resp.FailureReason = s.reason("InstallLinuxPackage", err)
	}
	return resp, nil
}

// UninstallPackageOwningFile begins to remove the package of an application.
func (s *server) UninstallPackageOwningFile(ctx context.Context, req *pb.UninstallPackageOwningFileRequest) (*pb.UninstallPackageOwningFileResponse, error) {
	err := s.uninstall(ctx, req.GetDesktopFileId())
	resp := &pb.UninstallPackageOwningFileResponse{Status: pb.UninstallPackageOwningFileResponse_STARTED}
	if err != nil {
		resp.Status = pb.UninstallPackageOwningFileResponse_FAILED
		if errors.Is(err, packagekit.ErrBusy) {
			resp.Status = pb.UninstallPackageOwningFileResponse_BLOCKING_OPERATION_IN_PROGRESS
		}
		resp.FailureReason = s.reason("UninstallPackageOwningFile", err)
	}
	return resp, nil
}

func (s *server) uninstall(ctx context.Context, id string) error {
	if id == "" {
		return errors.New("the request names no application")
	}
	if s.parts.DesktopFile == nil {
		return errors.New("this agent has no applications")
	}
	file, err := s.parts.DesktopFile(id)
	if err != nil {
		return err
	}
	return s.operations.RemoveOwner(ctx, file)
}

// ApplyAnsiblePlaybook begins to apply a playbook.
func (s *server) ApplyAnsiblePlaybook(_ context.Context, req *pb.ApplyAnsiblePlaybookRequest) (*pb.ApplyAnsiblePlaybookResponse, error) {
	if err := s.playbooks.Apply(req.GetPlaybook()); err != nil {
		return &pb.ApplyAnsiblePlaybookResponse{
			Status:        pb.ApplyAnsiblePlaybookResponse_FAILED,
			FailureReason: s.reason("ApplyAnsiblePlaybook", err),
		}, nil
	}
	return &pb.ApplyAnsiblePlaybookResponse{Status: pb.ApplyAnsiblePlaybookResponse_STARTED}, nil
}

// ConfigureForArcSideload is for Android beside the container.
func (s *server) ConfigureForArcSideload(context.Context, *pb.ConfigureForArcSideloadRequest) (*pb.ConfigureForArcSideloadResponse, error) {
	return &pb.ConfigureForArcSideloadResponse{
		Status:        pb.ConfigureForArcSideloadResponse_FAILED,
		FailureReason: "there is no Android on this machine that programs of the container could be put into",
	}, nil
}

// ConnectChunnel is for port forwarding by ChromeOS's chunneld.
func (s *server) ConnectChunnel(context.Context, *pb.ConnectChunnelRequest) (*pb.ConnectChunnelResponse, error) {
	return &pb.ConnectChunnelResponse{
		FailureReason: "this agent forwards no ports; the container has an address that the host reaches",
	}, nil
}

// AddFileWatch watches a directory of the user's home.
func (s *server) AddFileWatch(_ context.Context, req *pb.AddFileWatchRequest) (*pb.AddFileWatchResponse, error) {
	if err := s.files.Add(req.GetPath()); err != nil {
		return &pb.AddFileWatchResponse{
			Status: pb.AddFileWatchResponse_FAILED, FailureReason: s.reason("AddFileWatch", err),
		}, nil
	}
	return &pb.AddFileWatchResponse{Status: pb.AddFileWatchResponse_SUCCEEDED}, nil
}

// RemoveFileWatch ends the watch of a directory.
func (s *server) RemoveFileWatch(_ context.Context, req *pb.RemoveFileWatchRequest) (*pb.RemoveFileWatchResponse, error) {
	if err := s.files.Remove(req.GetPath()); err != nil {
		return &pb.RemoveFileWatchResponse{
			Status: pb.RemoveFileWatchResponse_FAILED, FailureReason: s.reason("RemoveFileWatch", err),
		}, nil
	}
	return &pb.RemoveFileWatchResponse{Status: pb.RemoveFileWatchResponse_SUCCEEDED}, nil
}

// GetGarconSessionInfo tells whose session this is.
func (s *server) GetGarconSessionInfo(context.Context, *pb.GetGarconSessionInfoRequest) (*pb.GetGarconSessionInfoResponse, error) {
	return &pb.GetGarconSessionInfoResponse{
		Status:            pb.GetGarconSessionInfoResponse_SUCCEEDED,
		ContainerUsername: s.user.Name,
		ContainerHomedir:  s.user.Home,
		SftpVsockPort:     s.sftpPort,
	}, nil
}

// GetDebugInformation is text for somebody who looks for a fault.
func (s *server) GetDebugInformation(context.Context, *pb.GetDebugInformationRequest) (*pb.GetDebugInformationResponse, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "user: %s, home %s\n", s.user.Name, s.user.Home)
	b.WriteString(describeSystem(s.user.Home))
	fmt.Fprintf(&b, "sftp port: %d\nshells: %d\nfile watches: %d\n", s.sftpPort, s.shells.Running(), len(s.files.Paths()))
	if s.parts.Describe != nil {
		b.WriteString(s.parts.Describe())
	}
	return &pb.GetDebugInformationResponse{DebugInformation: clip(b.String())}, nil
}
