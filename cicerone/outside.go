package cicerone

import (
	"context"
	"errors"
	"net"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
)

// A VM is what vm_concierge tells of one that runs.
type VM struct {
	CID uint32
	// Owner has the word that signals carry.
	Owner policy.Owner
	Name  string
	// PID of the hypervisor; with the CID it tells a VM from another one that
	// had its name before.
	PID  uint32
	Type appspb.VmType
	// Containers says that the VM has tremplin, or will have it soon.
	Containers bool
	// Token is what the agent of a VM without containers is known by.
	Token string
	// ContainerSubnet is the containers' network (CIDR), Address the VM's own
	// address; empty where there is none.
	ContainerSubnet string
	Address         string
	Suspended       bool
}

// Endpoints are where one VM's calls to the host's ports arrive. Whoever gets
// them closes them.
type Endpoints struct {
	Tremplin  net.Listener // port 7778
	Crash     net.Listener // port 7779
	Container net.Listener // port 8889
}

// Concierge is what this package needs of vm_concierge.
type Concierge interface {
	// ListVMs returns all VMs that run, of all owners.
	ListVMs(ctx context.Context) ([]VM, error)
	// OpenEndpoints returns the VM with a CID and its endpoints.
	OpenEndpoints(ctx context.Context, cid uint32) (VM, Endpoints, error)
	// Dial opens a stream to a port of a VM.
	Dial(ctx context.Context, cid, port uint32) (net.Conn, error)
	// TremplinReady says that containers can be asked for in a VM.
	TremplinReady(ctx context.Context, cid uint32) error
	// ContainerKeys returns the key that may log in to a container, as a line
	// of authorized_keys, and the private host key for its sshd.
	ContainerKeys(ctx context.Context, cid uint32, container string) (authorized, hostKey string, err error)
}

// Events announces what happens to those who may know it. Emit keeps the order
// of its calls and does not wait for receivers; it is called with locks held
// and must not call back.
type Events interface {
	Emit(owner uint32, signal string, msg proto.Message)
}

// ErrNoDesktop is what a Desktop returns when no program of the VM's owner
// takes such requests.
var ErrNoDesktop = errors.New("no program of the user's desktop takes this")

// Desktop is what shows the applications of a user's containers. The owner is
// the VM's.
type Desktop interface {
	UpdateApplicationList(ctx context.Context, owner uint32, list *appspb.ApplicationList) error
	UpdateMimeTypes(ctx context.Context, owner uint32, types *appspb.MimeTypes) error
	LaunchTerminal(ctx context.Context, owner uint32, params *appspb.TerminalParams) error
	// SelectFile shows a dialog; the answer comes by FileSelected.
	SelectFile(ctx context.Context, owner uint32, req *appspb.SelectFileRequest) error
	OpenUrl(ctx context.Context, owner uint32, url string) error
}

// Signals of vm_cicerone, by the name of the message each carries without
// "Signal", as on ChromeOS.
const (
	SignalTremplinStarted              = "TremplinStarted"
	SignalStartLxdProgress             = "StartLxdProgress"
	SignalLxdContainerDownloading      = "LxdContainerDownloading"
	SignalLxdContainerCreated          = "LxdContainerCreated"
	SignalLxdContainerStarting         = "LxdContainerStarting"
	SignalLxdContainerStopping         = "LxdContainerStopping"
	SignalLxdContainerDeleted          = "LxdContainerDeleted"
	SignalContainerStarted             = "ContainerStarted"
	SignalContainerShutdown            = "ContainerShutdown"
	SignalInstallLinuxPackageProgress  = "InstallLinuxPackageProgress"
	SignalUninstallPackageProgress     = "UninstallPackageProgress"
	SignalApplyAnsiblePlaybookProgress = "ApplyAnsiblePlaybookProgress"
	SignalExportLxdContainerProgress   = "ExportLxdContainerProgress"
	SignalImportLxdContainerProgress   = "ImportLxdContainerProgress"
	SignalPendingAppListUpdates        = "PendingAppListUpdates"
	SignalFileWatchTriggered           = "FileWatchTriggered"
	SignalLowDiskSpaceTriggered        = "LowDiskSpaceTriggered"
	SignalInhibitScreensaver           = "InhibitScreensaver"
	SignalUninhibitScreensaver         = "UninhibitScreensaver"
)
