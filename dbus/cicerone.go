package dbus

import (
	"context"
	"time"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// Names of vm_cicerone on the bus, as on ChromeOS.
const (
	CiceroneName      = "org.chromium.VmCicerone"
	CiceronePath      = "/org/chromium/VmCicerone"
	CiceroneInterface = "org.chromium.VmCicerone"
)

// startContainerTimeout bounds starting and stopping a container: a guest under
// emulation needs minutes for what others do in seconds.
const startContainerTimeout = 5 * time.Minute

// A Cicerone handles the methods of org.chromium.VmCicerone. What is said of
// [Concierge] holds here too. The subject of what Auberge's daemons tell each
// other (NotifyVm..., GetContainerToken) has the owner that the request names.
type Cicerone interface {
	NotifyVmStarted(ctx context.Context, s policy.Subject, req *ciceronepb.NotifyVmStartedRequest) (*vmtoolspb.EmptyMessage, error)
	NotifyVmStopping(ctx context.Context, s policy.Subject, req *ciceronepb.NotifyVmStoppingRequest) (*vmtoolspb.EmptyMessage, error)
	NotifyVmStopped(ctx context.Context, s policy.Subject, req *ciceronepb.NotifyVmStoppedRequest) (*vmtoolspb.EmptyMessage, error)
	GetContainerToken(ctx context.Context, s policy.Subject, req *ciceronepb.ContainerTokenRequest) (*ciceronepb.ContainerTokenResponse, error)

	IsContainerRunning(ctx context.Context, s policy.Subject, req *ciceronepb.IsContainerRunningRequest) (*ciceronepb.IsContainerRunningResponse, error)
	ListRunningContainers(ctx context.Context, s policy.Subject, req *ciceronepb.ListRunningContainersRequest) (*ciceronepb.ListRunningContainersResponse, error)
	GetGarconSessionInfo(ctx context.Context, s policy.Subject, req *ciceronepb.GetGarconSessionInfoRequest) (*ciceronepb.GetGarconSessionInfoResponse, error)

	StartLxd(ctx context.Context, s policy.Subject, req *ciceronepb.StartLxdRequest) (*ciceronepb.StartLxdResponse, error)
	CreateLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.CreateLxdContainerRequest) (*ciceronepb.CreateLxdContainerResponse, error)
	DeleteLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.DeleteLxdContainerRequest) (*ciceronepb.DeleteLxdContainerResponse, error)
	StartLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.StartLxdContainerRequest) (*ciceronepb.StartLxdContainerResponse, error)
	StopLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.StopLxdContainerRequest) (*ciceronepb.StopLxdContainerResponse, error)
	GetLxdContainerUsername(ctx context.Context, s policy.Subject, req *ciceronepb.GetLxdContainerUsernameRequest) (*ciceronepb.GetLxdContainerUsernameResponse, error)
	SetUpLxdContainerUser(ctx context.Context, s policy.Subject, req *ciceronepb.SetUpLxdContainerUserRequest) (*ciceronepb.SetUpLxdContainerUserResponse, error)
	ExportLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.ExportLxdContainerRequest) (*ciceronepb.ExportLxdContainerResponse, error)
	CancelExportLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.CancelExportLxdContainerRequest) (*ciceronepb.CancelExportLxdContainerResponse, error)
	ImportLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.ImportLxdContainerRequest) (*ciceronepb.ImportLxdContainerResponse, error)
	CancelImportLxdContainer(ctx context.Context, s policy.Subject, req *ciceronepb.CancelImportLxdContainerRequest) (*ciceronepb.CancelImportLxdContainerResponse, error)

	LaunchContainerApplication(ctx context.Context, s policy.Subject, req *ciceronepb.LaunchContainerApplicationRequest) (*ciceronepb.LaunchContainerApplicationResponse, error)
	GetContainerAppIcon(ctx context.Context, s policy.Subject, req *ciceronepb.ContainerAppIconRequest) (*ciceronepb.ContainerAppIconResponse, error)
	FileSelected(ctx context.Context, s policy.Subject, req *ciceronepb.FileSelectedSignal) (*vmtoolspb.EmptyMessage, error)
	LaunchVshd(ctx context.Context, s policy.Subject, req *ciceronepb.LaunchVshdRequest) (*ciceronepb.LaunchVshdResponse, error)
	RegisterVshSession(ctx context.Context, s policy.Subject, req *ciceronepb.RegisterVshSessionRequest) (*ciceronepb.RegisterVshSessionResponse, error)
	GetVshSession(ctx context.Context, s policy.Subject, req *ciceronepb.GetVshSessionRequest) (*ciceronepb.GetVshSessionResponse, error)
	AddFileWatch(ctx context.Context, s policy.Subject, req *ciceronepb.AddFileWatchRequest) (*ciceronepb.AddFileWatchResponse, error)
	RemoveFileWatch(ctx context.Context, s policy.Subject, req *ciceronepb.RemoveFileWatchRequest) (*ciceronepb.RemoveFileWatchResponse, error)

	GetLinuxPackageInfo(ctx context.Context, s policy.Subject, req *ciceronepb.LinuxPackageInfoRequest) (*ciceronepb.LinuxPackageInfoResponse, error)
	InstallLinuxPackage(ctx context.Context, s policy.Subject, req *ciceronepb.InstallLinuxPackageRequest) (*ciceronepb.InstallLinuxPackageResponse, error)
	UninstallPackageOwningFile(ctx context.Context, s policy.Subject, req *ciceronepb.UninstallPackageOwningFileRequest) (*ciceronepb.UninstallPackageOwningFileResponse, error)
	ApplyAnsiblePlaybook(ctx context.Context, s policy.Subject, req *ciceronepb.ApplyAnsiblePlaybookRequest) (*ciceronepb.ApplyAnsiblePlaybookResponse, error)

	// SetTimezone and GetDebugInformation are about all VMs of the caller, or
	// when the subject says so about everybody's.
	SetTimezone(ctx context.Context, s policy.Subject, req *ciceronepb.SetTimezoneRequest) (*ciceronepb.SetTimezoneResponse, error)
	GetDebugInformation(ctx context.Context, s policy.Subject, req *ciceronepb.GetDebugInformationRequest) (*ciceronepb.GetDebugInformationResponse, error)
}

// CiceroneService is the face of vm_cicerone. With a nil h it describes the
// face to a client and can't be served.
func CiceroneService(h Cicerone) Service {
	startContainer := method("StartLxdContainer", policy.RightOwn, h, Cicerone.StartLxdContainer)
	startContainer.Timeout = startContainerTimeout
	stopContainer := method("StopLxdContainer", policy.RightOwn, h, Cicerone.StopLxdContainer)
	stopContainer.Timeout = startContainerTimeout
	setUpUser := method("SetUpLxdContainerUser", policy.RightOwn, h, Cicerone.SetUpLxdContainerUser)
	setUpUser.Timeout = startContainerTimeout
	packageInfo := method("GetLinuxPackageInfo", policy.RightOwn, h, Cicerone.GetLinuxPackageInfo)
	packageInfo.Timeout = startContainerTimeout
	icons := method("GetContainerAppIcon", policy.RightOwn, h, Cicerone.GetContainerAppIcon)
	icons.Weight = 8 // a short request, and an answer that may be megabytes
	debug := method("GetDebugInformation", policy.RightSelf, h, Cicerone.GetDebugInformation)
	debug.Weight = longAnswer
	return Service{
		Program: "vm_cicerone", BusName: CiceroneName, Path: CiceronePath, Interface: CiceroneInterface,
		Methods: []Method{
			method("NotifyVmStarted", policy.RightDaemon, h, Cicerone.NotifyVmStarted),
			method("NotifyVmStopping", policy.RightDaemon, h, Cicerone.NotifyVmStopping),
			method("NotifyVmStopped", policy.RightDaemon, h, Cicerone.NotifyVmStopped),
			method("GetContainerToken", policy.RightDaemon, h, Cicerone.GetContainerToken),
			method("IsContainerRunning", policy.RightOwn, h, Cicerone.IsContainerRunning),
			method("ListRunningContainers", policy.RightOwn, h, Cicerone.ListRunningContainers),
			method("GetGarconSessionInfo", policy.RightOwn, h, Cicerone.GetGarconSessionInfo),
			method("StartLxd", policy.RightOwn, h, Cicerone.StartLxd),
			method("CreateLxdContainer", policy.RightOwn, h, Cicerone.CreateLxdContainer),
			method("DeleteLxdContainer", policy.RightOwn, h, Cicerone.DeleteLxdContainer),
			startContainer,
			stopContainer,
			method("GetLxdContainerUsername", policy.RightOwn, h, Cicerone.GetLxdContainerUsername),
			setUpUser,
			method("ExportLxdContainer", policy.RightOwn, h, Cicerone.ExportLxdContainer),
			method("CancelExportLxdContainer", policy.RightOwn, h, Cicerone.CancelExportLxdContainer),
			method("ImportLxdContainer", policy.RightOwn, h, Cicerone.ImportLxdContainer),
			method("CancelImportLxdContainer", policy.RightOwn, h, Cicerone.CancelImportLxdContainer),
			method("LaunchContainerApplication", policy.RightOwn, h, Cicerone.LaunchContainerApplication),
			icons,
			method("FileSelected", policy.RightOwn, h, Cicerone.FileSelected),
			method("LaunchVshd", policy.RightOwn, h, Cicerone.LaunchVshd),
			method("RegisterVshSession", policy.RightOwn, h, Cicerone.RegisterVshSession),
			method("GetVshSession", policy.RightOwn, h, Cicerone.GetVshSession),
			method("AddFileWatch", policy.RightOwn, h, Cicerone.AddFileWatch),
			method("RemoveFileWatch", policy.RightOwn, h, Cicerone.RemoveFileWatch),
			packageInfo,
			method("InstallLinuxPackage", policy.RightOwn, h, Cicerone.InstallLinuxPackage),
			method("UninstallPackageOwningFile", policy.RightOwn, h, Cicerone.UninstallPackageOwningFile),
			method("ApplyAnsiblePlaybook", policy.RightOwn, h, Cicerone.ApplyAnsiblePlaybook),
			method("SetTimezone", policy.RightSelf, h, Cicerone.SetTimezone),
			debug,
		},
		Signals: []Signal{
			{Name: "TremplinStarted", Payload: new(ciceronepb.TremplinStartedSignal)},
			{Name: "StartLxdProgress", Payload: new(ciceronepb.StartLxdProgressSignal)},
			{Name: "LxdContainerDownloading", Payload: new(ciceronepb.LxdContainerDownloadingSignal)},
			{Name: "LxdContainerCreated", Payload: new(ciceronepb.LxdContainerCreatedSignal)},
			{Name: "LxdContainerStarting", Payload: new(ciceronepb.LxdContainerStartingSignal)},
			{Name: "LxdContainerStopping", Payload: new(ciceronepb.LxdContainerStoppingSignal)},
			{Name: "LxdContainerDeleted", Payload: new(ciceronepb.LxdContainerDeletedSignal)},
			{Name: "ContainerStarted", Payload: new(ciceronepb.ContainerStartedSignal)},
			{Name: "ContainerShutdown", Payload: new(ciceronepb.ContainerShutdownSignal)},
			{Name: "InstallLinuxPackageProgress", Payload: new(ciceronepb.InstallLinuxPackageProgressSignal)},
			{Name: "UninstallPackageProgress", Payload: new(ciceronepb.UninstallPackageProgressSignal)},
			{Name: "ApplyAnsiblePlaybookProgress", Payload: new(ciceronepb.ApplyAnsiblePlaybookProgressSignal)},
			{Name: "ExportLxdContainerProgress", Payload: new(ciceronepb.ExportLxdContainerProgressSignal)},
			{Name: "ImportLxdContainerProgress", Payload: new(ciceronepb.ImportLxdContainerProgressSignal)},
			{Name: "PendingAppListUpdates", Payload: new(ciceronepb.PendingAppListUpdatesSignal)},
			{Name: "FileWatchTriggered", Payload: new(ciceronepb.FileWatchTriggeredSignal)},
			{Name: "LowDiskSpaceTriggered", Payload: new(ciceronepb.LowDiskSpaceTriggeredSignal)},
			{Name: "InhibitScreensaver", Payload: new(ciceronepb.InhibitScreensaverSignal)},
			{Name: "UninhibitScreensaver", Payload: new(ciceronepb.UninhibitScreensaverSignal)},
		},
	}
}
