package dbus

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is long because
// nothing depends on it but how long a broken test runs.
const patience = 30 * time.Second

var errUnset = errors.New("the test does not expect this call")

// handler is a Concierge and a Concierge1 made of functions.
type handler struct {
	startVm          func(context.Context, policy.Subject, *conciergepb.StartVmRequest, []*os.File) (*conciergepb.StartVmResponse, error)
	stopVm           func(context.Context, policy.Subject, *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error)
	getVmInfo        func(context.Context, policy.Subject, *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error)
	listVms          func(context.Context, policy.Subject, *conciergepb.ListVmsRequest) (*conciergepb.ListVmsResponse, error)
	createDiskImage  func(context.Context, policy.Subject, *conciergepb.CreateDiskImageRequest, []*os.File) (*conciergepb.CreateDiskImageResponse, error)
	destroyDiskImage func(context.Context, policy.Subject, *conciergepb.DestroyDiskImageRequest) (*conciergepb.DestroyDiskImageResponse, error)
	listVmDisks      func(context.Context, policy.Subject, *conciergepb.ListVmDisksRequest) (proto.Message, error)
	openVMEndpoints  func(context.Context, uint32) (VMEndpoints, error)
	connectVsock     func(context.Context, policy.Subject, string, uint32) (*os.File, error)
	openVmLogs       func(context.Context, policy.Subject, string, LogOptions) (*os.File, error)
	configureVm      func(context.Context, policy.Subject, string, VMSettings) error
	stopAllVms       func(context.Context, policy.Subject) error
	syncVmTimes      func(context.Context, policy.Subject) (*conciergepb.SyncVmTimesResponse, error)
	getVmSettings    func(context.Context, policy.Subject, string) (VMSettings, error)
	getVmLogs        func(context.Context, policy.Subject, *conciergepb.GetVmLogsRequest) (*conciergepb.GetVmLogsResponse, error)
	getState         func(context.Context, policy.Subject) (State, error)
	getAllState      func(context.Context, policy.Subject) (State, error)
	listDiskUsage    func(context.Context, policy.Subject) ([]map[string]any, error)
	getQuota         func(context.Context, policy.Subject) (map[string]any, error)
	getServiceInfo   func(context.Context, policy.Subject) (map[string]any, error)
}

func (h *handler) StartVm(ctx context.Context, s policy.Subject, req *conciergepb.StartVmRequest, fds []*os.File) (*conciergepb.StartVmResponse, error) {
	if h.startVm == nil {
		return nil, errUnset
	}
	return h.startVm(ctx, s, req, fds)
}

func (h *handler) StopVm(ctx context.Context, s policy.Subject, req *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
	if h.stopVm == nil {
		return nil, errUnset
	}
	return h.stopVm(ctx, s, req)
}

func (h *handler) GetVmInfo(ctx context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
	if h.getVmInfo == nil {
		return nil, errUnset
	}
	return h.getVmInfo(ctx, s, req)
}

func (h *handler) ListVms(ctx context.Context, s policy.Subject, req *conciergepb.ListVmsRequest) (*conciergepb.ListVmsResponse, error) {
	if h.listVms == nil {
		return nil, errUnset
	}
	return h.listVms(ctx, s, req)
}

func (h *handler) CreateDiskImage(ctx context.Context, s policy.Subject, req *conciergepb.CreateDiskImageRequest, fds []*os.File) (*conciergepb.CreateDiskImageResponse, error) {
	if h.createDiskImage == nil {
		return nil, errUnset
	}
	return h.createDiskImage(ctx, s, req, fds)
}

func (h *handler) DestroyDiskImage(ctx context.Context, s policy.Subject, req *conciergepb.DestroyDiskImageRequest) (*conciergepb.DestroyDiskImageResponse, error) {
	if h.destroyDiskImage == nil {
		return nil, errUnset
	}
	return h.destroyDiskImage(ctx, s, req)
}

func (h *handler) ListVmDisks(ctx context.Context, s policy.Subject, req *conciergepb.ListVmDisksRequest) (proto.Message, error) {
	if h.listVmDisks == nil {
		return nil, errUnset
	}
	return h.listVmDisks(ctx, s, req)
}

func (h *handler) ConnectVsock(ctx context.Context, s policy.Subject, name string, port uint32) (*os.File, error) {
	if h.connectVsock == nil {
		return nil, errUnset
	}
	return h.connectVsock(ctx, s, name, port)
}

func (h *handler) AllowUncheckedAgent(context.Context, policy.Subject, string, bool) error {
	return nil
}

func (h *handler) ConfigureVm(ctx context.Context, s policy.Subject, name string, settings VMSettings) error {
	if h.configureVm == nil {
		return errUnset
	}
	return h.configureVm(ctx, s, name, settings)
}

func (h *handler) ResizeDiskImage(context.Context, policy.Subject, *conciergepb.ResizeDiskImageRequest) (*conciergepb.ResizeDiskImageResponse, error) {
	return nil, errUnset
}

func (h *handler) DiskImageStatus(context.Context, policy.Subject, *conciergepb.DiskImageStatusRequest) (*conciergepb.DiskImageStatusResponse, error) {
	return nil, errUnset
}

func (h *handler) CancelDiskImageOperation(context.Context, policy.Subject, *conciergepb.CancelDiskImageRequest) (*conciergepb.SuccessFailureResponse, error) {
	return nil, errUnset
}

func (h *handler) StopVmWithoutOwnerId(context.Context, policy.Subject, *conciergepb.StopVmRequest) (*conciergepb.SuccessFailureResponse, error) {
	return nil, errUnset
}

func (h *handler) StopAllVms(ctx context.Context, s policy.Subject) error {
	if h.stopAllVms == nil {
		return errUnset
	}
	return h.stopAllVms(ctx, s)
}

func (h *handler) SyncVmTimes(ctx context.Context, s policy.Subject) (*conciergepb.SyncVmTimesResponse, error) {
	if h.syncVmTimes == nil {
		return nil, errUnset
	}
	return h.syncVmTimes(ctx, s)
}

func (h *handler) SuspendVm(context.Context, policy.Subject, *conciergepb.SuspendVmRequest) (*conciergepb.SuccessFailureResponse, error) {
	return nil, errUnset
}

func (h *handler) ResumeVm(context.Context, policy.Subject, *conciergepb.ResumeVmRequest) (*conciergepb.SuccessFailureResponse, error) {
	return nil, errUnset
}

func (h *handler) SetUpVmUser(context.Context, policy.Subject, *conciergepb.SetUpVmUserRequest) (*conciergepb.SetUpVmUserResponse, error) {
	return nil, errUnset
}

func (h *handler) GetVmEnterpriseReportingInfo(context.Context, policy.Subject, *conciergepb.GetVmEnterpriseReportingInfoRequest) (*conciergepb.GetVmEnterpriseReportingInfoResponse, error) {
	return nil, errUnset
}

func (h *handler) GetDnsSettings(context.Context, policy.Subject) (*conciergepb.DnsSettings, error) {
	return nil, errUnset
}

func (h *handler) GetVmLaunchAllowed(context.Context, policy.Subject, *conciergepb.GetVmLaunchAllowedRequest) (*conciergepb.GetVmLaunchAllowedResponse, error) {
	return nil, errUnset
}

func (h *handler) ListenVsock(context.Context, policy.Subject, string, uint32) (*os.File, uint32, error) {
	return nil, 0, errUnset
}

func (h *handler) GetVmLogs(ctx context.Context, s policy.Subject, req *conciergepb.GetVmLogsRequest) (*conciergepb.GetVmLogsResponse, error) {
	if h.getVmLogs == nil {
		return nil, errUnset
	}
	return h.getVmLogs(ctx, s, req)
}

func (h *handler) OpenVmLogs(ctx context.Context, s policy.Subject, name string, o LogOptions) (*os.File, error) {
	if h.openVmLogs == nil {
		return nil, errUnset
	}
	return h.openVmLogs(ctx, s, name, o)
}

func (h *handler) ListOperations(context.Context, policy.Subject) ([]map[string]any, error) {
	return nil, errUnset
}

func (h *handler) GetVmSettings(ctx context.Context, s policy.Subject, name string) (VMSettings, error) {
	if h.getVmSettings == nil {
		return VMSettings{}, errUnset
	}
	return h.getVmSettings(ctx, s, name)
}

func (h *handler) ListImages(context.Context, policy.Subject) ([]map[string]any, error) {
	return nil, errUnset
}

func (h *handler) UpdateImage(context.Context, policy.Subject) (map[string]any, error) {
	return nil, errUnset
}

func (h *handler) RollbackImage(context.Context, policy.Subject) (map[string]any, error) {
	return nil, errUnset
}

func (h *handler) GetState(ctx context.Context, s policy.Subject) (State, error) {
	if h.getState == nil {
		return State{}, errUnset
	}
	return h.getState(ctx, s)
}

// echo answers GetVmInfo with what it was asked for.
func echo(_ context.Context, s policy.Subject, req *conciergepb.GetVmInfoRequest) (*conciergepb.GetVmInfoResponse, error) {
	return &conciergepb.GetVmInfoResponse{
		Success: true,
		VmInfo:  &conciergepb.VmInfo{PermissionToken: req.Name, Cid: int64(s.Owner.UID)},
	}, nil
}

// serve runs a server of h on bus until the test ends, or stop is called.
func serve(t testing.TB, bus *dbustest.Bus, h *handler, opts Options) (s *Server, stop func()) {
	t.Helper()
	opts.Bus = bus.Address
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := New([]Service{ConciergeService(h)}, []OwnInterface{Concierge1Interface(h)}, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error("Run:", err)
		}
	}
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal("Run:", err)
	}
	t.Cleanup(stop)
	return s, stop
}

// invoke calls a method of vm_concierge and returns its results.
func invoke(t testing.TB, c *dbus.Conn, iface, member string, args ...any) ([]any, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := c.Object(ConciergeName, ConciergePath).CallWithContext(ctx, iface+"."+member, 0, args...)
	return r.Body, r.Err
}

// callProto calls a method of org.chromium.VmConcierge with a message.
func callProto(t testing.TB, c *dbus.Conn, member string, req, resp proto.Message, more ...any) error {
	t.Helper()
	data, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	results, err := invoke(t, c, ConciergeInterface, member, append([]any{data}, more...)...)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(results[0].([]byte), resp); err != nil {
		t.Fatal(err)
	}
	return nil
}

// errorName is the name of the D-Bus error that err is, or what else it is.
func errorName(err error) string {
	var e dbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	if err != nil {
		return err.Error()
	}
	return "success"
}

func wantError(t testing.TB, err error, name string) {
	t.Helper()
	if got := errorName(err); got != name {
		t.Fatalf("got %v (%v), want %s", got, err, name)
	}
}

func (h *handler) GetAllState(ctx context.Context, s policy.Subject) (State, error) {
	if h.getAllState == nil {
		return State{}, errUnset
	}
	return h.getAllState(ctx, s)
}

func (h *handler) ListDiskUsage(ctx context.Context, s policy.Subject) ([]map[string]any, error) {
	if h.listDiskUsage == nil {
		return nil, errUnset
	}
	return h.listDiskUsage(ctx, s)
}

func (h *handler) GetQuota(ctx context.Context, s policy.Subject) (map[string]any, error) {
	if h.getQuota == nil {
		return nil, errUnset
	}
	return h.getQuota(ctx, s)
}

func (h *handler) GetServiceInfo(ctx context.Context, s policy.Subject) (map[string]any, error) {
	if h.getServiceInfo == nil {
		return nil, errUnset
	}
	return h.getServiceInfo(ctx, s)
}

func (h *handler) ListVMEndpoints(context.Context) ([]map[string]any, error) { return nil, errUnset }

func (h *handler) OpenVMEndpoints(ctx context.Context, cid uint32) (VMEndpoints, error) {
	if h.openVMEndpoints == nil {
		return VMEndpoints{}, errUnset
	}
	return h.openVMEndpoints(ctx, cid)
}

func (h *handler) ConnectVMVsock(context.Context, uint32, uint32) (*os.File, error) {
	return nil, errUnset
}

func (h *handler) TremplinReady(context.Context, uint32) error { return errUnset }

func (h *handler) GetContainerKeys(context.Context, uint32, string) (string, string, error) {
	return "", "", errUnset
}

func (h *handler) StartContainer(context.Context, policy.Subject, *conciergepb.StartContainerRequest) (*conciergepb.StartContainerResponse, error) {
	return nil, errUnset
}

func (h *handler) GetContainerSshKeys(context.Context, policy.Subject, *conciergepb.ContainerSshKeysRequest) (*conciergepb.ContainerSshKeysResponse, error) {
	return nil, errUnset
}
