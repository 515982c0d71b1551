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
}

// ConciergeService is the face of vm_concierge. With a nil h it describes the
// face to a client and can't be served.
func ConciergeService(h Concierge) Service {
	startVm := methodWithFiles("StartVm", policy.RightOwn, h, Concierge.StartVm)
	startVm.Timeout = 10 * time.Minute // an image may have to be decompressed first
	listVmDisks := method("ListVmDisks", policy.RightOwn, h, Concierge.ListVmDisks)
	listVmDisks.Response = new(conciergepb.ListVmDisksResponse)
	listVmDisks.Seed = &SeedResponse{
		Response:  new(conciergepb.ListVmDisksSeedResponse),
		NewFields: []protoreflect.Name{"all_locations", "vm_name"},
	}
	return Service{
		BusName: ConciergeName, Path: ConciergePath, Interface: ConciergeInterface,
		Methods: []Method{
			startVm,
			method("StopVm", policy.RightOwn, h, Concierge.StopVm),
			method("GetVmInfo", policy.RightOwn, h, Concierge.GetVmInfo),
			method("ListVms", policy.RightOwn, h, Concierge.ListVms),
			methodWithFiles("CreateDiskImage", policy.RightOwn, h, Concierge.CreateDiskImage),
			method("DestroyDiskImage", policy.RightOwn, h, Concierge.DestroyDiskImage),
			listVmDisks,
		},
		Signals: []Signal{
			{VmStartingUpSignal, new(conciergepb.VmStartingUpSignal)},
			{VmStartedSignal, new(conciergepb.VmStartedSignal)},
			{VmStoppingSignal, new(conciergepb.VmStoppingSignal)},
			{VmStoppedSignal, new(conciergepb.VmStoppedSignal)},
		},
	}
}
