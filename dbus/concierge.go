package dbus

import (
	"context"
	"os"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// Names of vm_concierge on the bus, as on ChromeOS.
const (
	ConciergeName      = "org.chromium.VmConcierge"
	ConciergePath      = "/org/chromium/VmConcierge"
	ConciergeInterface = "org.chromium.VmConcierge"
)

// Signals of vm_concierge, as on ChromeOS.
const (
	VmStartingUpSignal = "VmStartingUpSignal"
	VmStartedSignal    = "VmStartedSignal"
	VmStoppingSignal   = "VmStoppingSignal"
	VmStoppedSignal    = "VmStoppedSignal"
	// VmInstallStateSignal is what a guest says that installs itself.
	VmInstallStateSignal = "VmInstallStateSignal"
	// ContainerStarted and ContainerStartupFailed are how a StartContainer ends.
	ContainerStarted       = "ContainerStarted"
	ContainerStartupFailed = "ContainerStartupFailed"
	// DiskImageProgress comes at most once a second for an operation, and at
	// its beginning and end.
	DiskImageProgress = "DiskImageProgress"
	// DnsSettingsChanged is about the host and goes to everybody.
	DnsSettingsChanged = "DnsSettingsChanged"
)

// A Concierge handles the methods of org.chromium.VmConcierge. The subject
// says who calls and whose VMs it is about, and its right to them is checked;
// the handler need not look at the request's owner word.
//
// An error becomes the response's reason. One that wraps policy.ErrDenied is
// AccessDenied on the bus. Descriptors are closed when the handler returns;
// one that keeps a descriptor duplicates it.
type Concierge interface {
	StartVm(ctx context.Context, s policy.Subject, req *conciergepb.StartVmRequest, fds []*os.File) (*conciergepb.StartVmResponse, error)
	StopVm(ctx context.Context, s policy.Subject, req *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error)
	GetVmInfo(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error)
	ListVms(ctx context.Context, s policy.Subject, req *conciergepb.ListVmsRequest) (*conciergepb.ListVmsResponse, error)
	CreateDiskImage(ctx context.Context, s policy.Subject, req *conciergepb.CreateDiskImageRequest, fds []*os.File) (*conciergepb.CreateDiskImageResponse, error)
	DestroyDiskImage(ctx context.Context, s policy.Subject, req *conciergepb.DestroyDiskImageRequest) (*conciergepb.DestroyDiskImageResponse, error)
	// ListVmDisks returns a ListVmDisksSeedResponse unless the request uses
	// all_locations or vm_name, and a ListVmDisksResponse then.
	ListVmDisks(ctx context.Context, s policy.Subject, req *conciergepb.ListVmDisksRequest) (proto.Message, error)
	ResizeDiskImage(ctx context.Context, s policy.Subject, req *conciergepb.ResizeDiskImageRequest) (*conciergepb.ResizeDiskImageResponse, error)
	// DiskImageStatus and CancelDiskImageOperation know the caller's own
	// operations, calls for everybody all of them.
	DiskImageStatus(ctx context.Context, s policy.Subject, req *conciergepb.DiskImageStatusRequest) (*conciergepb.DiskImageStatusResponse, error)
	CancelDiskImageOperation(ctx context.Context, s policy.Subject, req *conciergepb.CancelDiskImageRequest) (*conciergepb.SuccessFailureResponse, error)

	// StopVmWithoutOwnerId, StopAllVms and SyncVmTimes are about all VMs of
	// the caller, or when the subject says so about everybody's.
	StopVmWithoutOwnerId(ctx context.Context, s policy.Subject, req *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error)
	StopAllVms(ctx context.Context, s policy.Subject) error
	SyncVmTimes(ctx context.Context, s policy.Subject) (*conciergepb.SyncVmTimesResponse, error)
	SuspendVm(ctx context.Context, s policy.Subject, req *conciergepb.SuspendVmRequest) (*conciergepb.SuccessFailureResponse, error)
	ResumeVm(ctx context.Context, s policy.Subject, req *conciergepb.ResumeVmRequest) (*conciergepb.SuccessFailureResponse, error)
	SetUpVmUser(ctx context.Context, s policy.Subject, req *conciergepb.SetUpVmUserRequest) (*conciergepb.SetUpVmUserResponse, error)
	GetVmEnterpriseReportingInfo(ctx context.Context, s policy.Subject, req *conciergepb.GetVmEnterpriseReportingInfoRequest) (*conciergepb.GetVmEnterpriseReportingInfoResponse, error)
	GetVmLogs(ctx context.Context, s policy.Subject, req *conciergepb.GetVmLogsRequest) (*conciergepb.GetVmLogsResponse, error)

	// StartContainer returns when a container is being started, and signals
	// tell the rest. GetContainerSshKeys tells what it is reached by.
	StartContainer(ctx context.Context, s policy.Subject, req *conciergepb.StartContainerRequest) (*conciergepb.StartContainerResponse, error)
	GetContainerSshKeys(ctx context.Context, s policy.Subject, req *conciergepb.ContainerSshKeysRequest) (*conciergepb.ContainerSshKeysResponse, error)

	// GetDnsSettings and GetVmLaunchAllowed are about the host.
	GetDnsSettings(ctx context.Context, s policy.Subject) (*conciergepb.DnsSettings, error)
	GetVmLaunchAllowed(ctx context.Context, s policy.Subject, req *conciergepb.GetVmLaunchAllowedRequest) (*conciergepb.GetVmLaunchAllowedResponse, error)
}

// ConciergeService is the face of vm_concierge. With a nil h it describes the
// face to a client and can't be served.
func ConciergeService(h Concierge) Service {
	startVm := methodWithFiles("StartVm", policy.RightOwn, h, Concierge.StartVm)
	startVm.Timeout = 10 * time.Minute // an image may have to be decompressed first
	getVmLogs := method("GetVmLogs", policy.RightOwn, h, Concierge.GetVmLogs)
	getVmLogs.Weight = longAnswer
	listVmDisks := method("ListVmDisks", policy.RightOwn, h, Concierge.ListVmDisks)
	listVmDisks.Response = new(conciergepb.ListVmDisksResponse)
	listVmDisks.Seed = &SeedResponse{
		Response:  new(conciergepb.ListVmDisksSeedResponse),
		NewFields: []protoreflect.Name{"all_locations", "vm_name"},
	}
	return Service{
		Program: "vm_concierge", BusName: ConciergeName, Path: ConciergePath, Interface: ConciergeInterface,
		Methods: []Method{
			startVm,
			method("StopVm", policy.RightOwn, h, Concierge.StopVm),
			method("GetVmInfo", policy.RightOwn, h, Concierge.GetVmInfo),
			method("ListVms", policy.RightOwn, h, Concierge.ListVms),
			methodWithFiles("CreateDiskImage", policy.RightOwn, h, Concierge.CreateDiskImage),
			method("DestroyDiskImage", policy.RightOwn, h, Concierge.DestroyDiskImage),
			listVmDisks,
			method("ResizeDiskImage", policy.RightOwn, h, Concierge.ResizeDiskImage),
			method("DiskImageStatus", policy.RightSelf, h, Concierge.DiskImageStatus),
			method("CancelDiskImageOperation", policy.RightSelf, h, Concierge.CancelDiskImageOperation),
			method("StopVmWithoutOwnerId", policy.RightSelf, h, Concierge.StopVmWithoutOwnerId),
			methodWithoutAnswer("StopAllVms", policy.RightSelf, h, Concierge.StopAllVms),
			methodWithoutRequest("SyncVmTimes", policy.RightSelf, h, Concierge.SyncVmTimes),
			method("SuspendVm", policy.RightOwn, h, Concierge.SuspendVm),
			method("ResumeVm", policy.RightOwn, h, Concierge.ResumeVm),
			method("SetUpVmUser", policy.RightOwn, h, Concierge.SetUpVmUser),
			method("GetVmEnterpriseReportingInfo", policy.RightOwn, h, Concierge.GetVmEnterpriseReportingInfo),
			getVmLogs,
			method("StartContainer", policy.RightOwn, h, Concierge.StartContainer),
			method("GetContainerSshKeys", policy.RightOwn, h, Concierge.GetContainerSshKeys),
			methodWithoutRequest("GetDnsSettings", policy.RightAny, h, Concierge.GetDnsSettings),
			method("GetVmLaunchAllowed", policy.RightAny, h, Concierge.GetVmLaunchAllowed),
		},
		Signals: []Signal{
			{Name: VmStartingUpSignal, Payload: new(conciergepb.VmStartingUpSignal)},
			{Name: VmStartedSignal, Payload: new(conciergepb.VmStartedSignal)},
			{Name: VmStoppingSignal, Payload: new(conciergepb.VmStoppingSignal)},
			{Name: VmStoppedSignal, Payload: new(conciergepb.VmStoppedSignal)},
			{Name: VmInstallStateSignal, Payload: new(conciergepb.VmInstallStateSignal)},
			{Name: ContainerStarted, Payload: new(conciergepb.ContainerStartedSignal)},
			{Name: ContainerStartupFailed, Payload: new(conciergepb.ContainerStartedSignal)},
			{Name: DiskImageProgress, Payload: new(conciergepb.DiskImageStatusResponse)},
			{Name: DnsSettingsChanged, Payload: new(conciergepb.DnsSettings), Public: true},
		},
	}
}
