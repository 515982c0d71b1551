package vmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A house stands for vm_cicerone behind the real tables and a real bus: one VM
// "vm", whose containers do what a test says.
type house struct {
	dbus.Cicerone
	dbus.Cicerone1
	t    *testing.T
	stop func()

	mu         sync.Mutex
	server     *dbus.Server
	containers map[string]string // status by name
	calls      []string
	// begin does the work of a method in the place of what is usual: it
	// answers with a status's name and tells the rest by signals.
	begin map[string]func(container string) error
}

// named is an error with a name on the bus.
type named struct {
	name string
	error
}

func (n named) BusErrorName() string { return n.name }

// openHouse puts both services on a bus, of which vm_cicerone can leave.
func openHouse(t *testing.T) (*house, *dbustest.Bus) {
	t.Helper()
	bus := dbustest.Lax(t)
	(&fake{info: func() *pb.GetVmInfoResponse {
		return &pb.GetVmInfoResponse{Success: true, VmInfo: &pb.VmInfo{Status: pb.VmStatus_VM_STATUS_RUNNING}}
	}, listVms: func() *pb.ListVmsResponse {
		return &pb.ListVmsResponse{Success: true, Vms: []*pb.ExtendedVmInfo{{Name: "vm"}}}
	}}).serve(t, bus, dbus.Options{})
	h := &house{t: t, containers: map[string]string{}, begin: map[string]func(string) error{}}
	h.serve(bus)
	looked := lookEvery
	lookEvery = 200 * time.Millisecond
	t.Cleanup(func() { lookEvery = looked })
	return h, bus
}

func (h *house) serve(bus *dbustest.Bus) {
	h.t.Helper()
	_, h.stop = serve(h.t, bus, dbus.CiceroneService(h), dbus.Cicerone1Interface(h), dbus.Options{}, func(s *dbus.Server) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.server = s
	})
}

// note records a call, and does the work that a test has set for it.
func (h *house) note(method, container string) (error, bool) {
	h.mu.Lock()
	h.calls = append(h.calls, method)
	f := h.begin[method]
	h.mu.Unlock()
	if f == nil {
		return nil, false
	}
	return f(container), true
}

// on sets what a method does.
func (h *house) on(method string, f func(container string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin[method] = f
}

func (h *house) set(name, status string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if status == "" {
		delete(h.containers, name)
		return
	}
	h.containers[name] = status
}

func (h *house) status(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.containers[name]
}

func (h *house) called(method string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if c == method {
			n++
		}
	}
	return n
}

// say sends a signal with the names of the VM and of its owner filled in.
func (h *house) say(msg proto.Message) {
	m := msg.ProtoReflect()
	owner := (&app{}).ownerWord()
	for name, value := range map[string]string{"vm_name": "vm", "owner_id": owner} {
		if fd := m.Descriptor().Fields().ByName(protoreflect.Name(name)); stringField(msg, name) == "" {
			m.Set(fd, protoreflect.ValueOfString(value))
		}
	}
	member := strings.TrimSuffix(string(m.Descriptor().Name()), "Signal")
	h.mu.Lock()
	server := h.server
	h.mu.Unlock()
	if err := server.Emit(context.Background(), uint32(os.Getuid()), member, msg); err != nil {
		h.t.Error(err)
	}
}

func (h *house) IsContainerRunning(_ context.Context, _ policy.Subject, req *ct.IsContainerRunningRequest) (*ct.IsContainerRunningResponse, error) {
	return &ct.IsContainerRunningResponse{ContainerRunning: h.status(req.ContainerName) == "running"}, nil
}

func (h *house) StartLxd(_ context.Context, _ policy.Subject, _ *ct.StartLxdRequest) (*ct.StartLxdResponse, error) {
	if err, set := h.note("StartLxd", ""); set {
		return &ct.StartLxdResponse{Status: ct.StartLxdResponse_STARTING}, err
	}
	return &ct.StartLxdResponse{Status: ct.StartLxdResponse_ALREADY_RUNNING}, nil
}

func (h *house) CreateLxdContainer(_ context.Context, _ policy.Subject, req *ct.CreateLxdContainerRequest) (*ct.CreateLxdContainerResponse, error) {
	if h.status(req.ContainerName) != "" {
		return &ct.CreateLxdContainerResponse{Status: ct.CreateLxdContainerResponse_EXISTS}, nil
	}
	if err, set := h.note("CreateLxdContainer", req.ContainerName); set {
		return &ct.CreateLxdContainerResponse{Status: ct.CreateLxdContainerResponse_CREATING}, err
	}
	for _, n := range []int32{0, 4, 50, 100} {
		h.say(&ct.LxdContainerDownloadingSignal{ContainerName: req.ContainerName, DownloadProgress: n})
	}
	h.say(&ct.LxdContainerCreatedSignal{ContainerName: "another", Status: ct.LxdContainerCreatedSignal_FAILED})
	h.say(&ct.LxdContainerCreatedSignal{OwnerId: "somebody", ContainerName: req.ContainerName, Status: ct.LxdContainerCreatedSignal_FAILED})
	h.set(req.ContainerName, "stopped")
	h.say(&ct.LxdContainerCreatedSignal{ContainerName: req.ContainerName, Status: ct.LxdContainerCreatedSignal_CREATED})
	return &ct.CreateLxdContainerResponse{Status: ct.CreateLxdContainerResponse_CREATING}, nil
}

func (h *house) SetUpLxdContainerUser(_ context.Context, _ policy.Subject, req *ct.SetUpLxdContainerUserRequest) (*ct.SetUpLxdContainerUserResponse, error) {
	return &ct.SetUpLxdContainerUserResponse{Status: ct.SetUpLxdContainerUserResponse_SUCCESS, ContainerUsername: req.ContainerUsername}, nil
}

func (h *house) GetLxdContainerUsername(context.Context, policy.Subject, *ct.GetLxdContainerUsernameRequest) (*ct.GetLxdContainerUsernameResponse, error) {
	return &ct.GetLxdContainerUsernameResponse{Status: ct.GetLxdContainerUsernameResponse_SUCCESS, Username: "alice"}, nil
}

func (h *house) StartLxdContainer(_ context.Context, _ policy.Subject, req *ct.StartLxdContainerRequest) (*ct.StartLxdContainerResponse, error) {
	if h.status(req.ContainerName) == "" {
		return &ct.StartLxdContainerResponse{Status: ct.StartLxdContainerResponse_FAILED, FailureReason: "no such container"}, nil
	}
	if err, set := h.note("StartLxdContainer", req.ContainerName); set {
		return &ct.StartLxdContainerResponse{Status: ct.StartLxdContainerResponse_STARTING}, err
	}
	h.set(req.ContainerName, "running")
	h.say(&ct.LxdContainerStartingSignal{ContainerName: req.ContainerName, Status: ct.LxdContainerStartingSignal_STARTED})
	h.say(&ct.ContainerStartedSignal{ContainerName: req.ContainerName})
	return &ct.StartLxdContainerResponse{Status: ct.StartLxdContainerResponse_STARTING, OsRelease: &ct.OsRelease{PrettyName: "Debian 13"}}, nil
}

func (h *house) StopLxdContainer(_ context.Context, _ policy.Subject, req *ct.StopLxdContainerRequest) (*ct.StopLxdContainerResponse, error) {
	switch h.status(req.ContainerName) {
	case "":
		return &ct.StopLxdContainerResponse{Status: ct.StopLxdContainerResponse_DOES_NOT_EXIST}, nil
	case "stopped":
		return &ct.StopLxdContainerResponse{Status: ct.StopLxdContainerResponse_STOPPED}, nil
	}
	if err, set := h.note("StopLxdContainer", req.ContainerName); set {
		return &ct.StopLxdContainerResponse{Status: ct.StopLxdContainerResponse_STOPPING}, err
	}
	h.set(req.ContainerName, "stopped")
	h.say(&ct.LxdContainerStoppingSignal{ContainerName: req.ContainerName, Status: ct.LxdContainerStoppingSignal_STOPPED})
	return &ct.StopLxdContainerResponse{Status: ct.StopLxdContainerResponse_STOPPING}, nil
}

func (h *house) DeleteLxdContainer(_ context.Context, _ policy.Subject, req *ct.DeleteLxdContainerRequest) (*ct.DeleteLxdContainerResponse, error) {
	if h.status(req.ContainerName) == "" {
		return &ct.DeleteLxdContainerResponse{Status: ct.DeleteLxdContainerResponse_DOES_NOT_EXIST}, nil
	}
	h.set(req.ContainerName, "")
	h.say(&ct.LxdContainerDeletedSignal{ContainerName: req.ContainerName, Status: ct.LxdContainerDeletedSignal_DELETED})
	return &ct.DeleteLxdContainerResponse{Status: ct.DeleteLxdContainerResponse_DELETING}, nil
}

func (h *house) ListContainers(_ context.Context, _ policy.Subject, vm string) ([]map[string]any, error) {
	if vm != "vm" {
		return nil, named{dbus.ErrorNotRunning, fmt.Errorf("VM %q does not run", vm)}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []map[string]any
	for name, status := range h.containers {
		all = append(all, map[string]any{"name": name, "status": status, "address": "100.64.0.2"})
	}
	return all, nil
}

func (h *house) ListRunningContainers(context.Context, policy.Subject, *ct.ListRunningContainersRequest) (*ct.ListRunningContainersResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var resp ct.ListRunningContainersResponse
	for name, status := range h.containers {
		if status == "running" {
			resp.Containers = append(resp.Containers, &ct.ContainerInfo{VmName: "vm", ContainerName: name, OsRelease: &ct.OsRelease{PrettyName: "Debian 13"}})
		}
	}
	return &resp, nil
}

func (h *house) GetLinuxPackageInfo(_ context.Context, _ policy.Subject, req *ct.LinuxPackageInfoRequest) (*ct.LinuxPackageInfoResponse, error) {
	if req.PackageName == "" && req.FilePath != "/tmp/hello.deb" || req.PackageName != "" && req.PackageName != "hello" {
		return &ct.LinuxPackageInfoResponse{FailureReason: "no such package"}, nil
	}
	return &ct.LinuxPackageInfoResponse{Success: true, PackageId: "hello;1.2-3;amd64;debian", Summary: "Says hello", Size: 2 << 20, Description: "It says\x1b[2J\nhello."}, nil
}

func (h *house) InstallLinuxPackage(_ context.Context, _ policy.Subject, req *ct.InstallLinuxPackageRequest) (*ct.InstallLinuxPackageResponse, error) {
	err, set := h.note("InstallLinuxPackage", req.ContainerName)
	if errors.Is(err, errBusy) {
		return &ct.InstallLinuxPackageResponse{Status: ct.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE}, nil
	}
	if set {
		return &ct.InstallLinuxPackageResponse{}, err
	}
	last := ct.InstallLinuxPackageProgressSignal_SUCCEEDED
	if req.FilePath == "/tmp/broken.deb" {
		last = ct.InstallLinuxPackageProgressSignal_FAILED
	}
	tell := func(uuid string, status ct.InstallLinuxPackageProgressSignal_Status, n uint32, why string) {
		h.say(&ct.InstallLinuxPackageProgressSignal{ContainerName: req.ContainerName, CommandUuid: uuid, Status: status, ProgressPercent: n, FailureDetails: why})
	}
	tell("another", ct.InstallLinuxPackageProgressSignal_FAILED, 0, "not ours")
	tell(req.CommandUuid, ct.InstallLinuxPackageProgressSignal_DOWNLOADING, 40, "")
	tell(req.CommandUuid, ct.InstallLinuxPackageProgressSignal_INSTALLING, 90, "")
	tell(req.CommandUuid, last, 100, "it is broken")
	return &ct.InstallLinuxPackageResponse{}, nil
}

var errBusy = errors.New("busy")

func (h *house) UninstallPackageOwningFile(_ context.Context, _ policy.Subject, req *ct.UninstallPackageOwningFileRequest) (*ct.UninstallPackageOwningFileResponse, error) {
	if req.DesktopFileId != "hello" {
		return &ct.UninstallPackageOwningFileResponse{Status: ct.UninstallPackageOwningFileResponse_FAILED, FailureReason: "no package owns it"}, nil
	}
	h.say(&ct.UninstallPackageProgressSignal{ContainerName: req.ContainerName, Status: ct.UninstallPackageProgressSignal_UNINSTALLING, ProgressPercent: 20})
	h.say(&ct.UninstallPackageProgressSignal{ContainerName: req.ContainerName, Status: ct.UninstallPackageProgressSignal_SUCCEEDED})
	return &ct.UninstallPackageOwningFileResponse{}, nil
}

func (h *house) ListApplications(_ context.Context, _ policy.Subject, _, container string) (*appspb.ApplicationList, error) {
	name := &appspb.App_LocaleString{Values: []*appspb.App_LocaleString_Entry{{Value: "Hello"}, {Locale: "de", Value: "Hallo"}}}
	return &appspb.ApplicationList{VmName: "vm", ContainerName: container, Apps: []*appspb.App{{DesktopFileId: "hello", Name: name, PackageId: "hello;1;amd64;"}}}, nil
}

func (h *house) LaunchContainerApplication(_ context.Context, _ policy.Subject, req *ct.LaunchContainerApplicationRequest) (*ct.LaunchContainerApplicationResponse, error) {
	h.note("launch "+req.ContainerName+" "+req.DesktopFileId+" "+strings.Join(req.Files, ","), "")
	return &ct.LaunchContainerApplicationResponse{Success: req.DesktopFileId == "hello", FailureReason: "no such application"}, nil
}

func (h *house) GetContainerAppIcon(_ context.Context, _ policy.Subject, req *ct.ContainerAppIconRequest) (*ct.ContainerAppIconResponse, error) {
	if req.DesktopFileIds[0] != "hello" || req.Size != 64 {
		return &ct.ContainerAppIconResponse{}, nil
	}
	return &ct.ContainerAppIconResponse{Icons: []*ct.DesktopIcon{{DesktopFileId: "hello", Icon: []byte("<svg/>"), Format: ct.DesktopIcon_SVG}}}, nil
}

// ExportContainer writes half of an archive; the test tells the rest.
func (h *house) ExportContainer(_ context.Context, _ policy.Subject, _, container string, out *os.File) error {
	if h.status(container) == "" {
		return named{dbus.ErrorNotFound, fmt.Errorf("there is no container %q", container)}
	}
	io.WriteString(out, "archive of "+container)
	h.say(&ct.ExportLxdContainerProgressSignal{ContainerName: container, Status: ct.ExportLxdContainerProgressSignal_EXPORTING_STREAMING, TotalInputBytes: 4, InputBytesStreamed: 1})
	if err, set := h.note("ExportContainer", container); set {
		return err
	}
	h.say(&ct.ExportLxdContainerProgressSignal{ContainerName: container, Status: ct.ExportLxdContainerProgressSignal_DONE})
	return nil
}

func (h *house) ImportContainer(_ context.Context, _ policy.Subject, _, container string, in *os.File) error {
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	last := &ct.ImportLxdContainerProgressSignal{ContainerName: container, Status: ct.ImportLxdContainerProgressSignal_DONE}
	switch string(b) {
	case "large":
		last.Status, last.AvailableSpace, last.MinRequiredSpace = ct.ImportLxdContainerProgressSignal_FAILED_SPACE, 1<<30, 3<<30
	case "arm":
		last.Status, last.ArchitectureContainer, last.ArchitectureDevice = ct.ImportLxdContainerProgressSignal_FAILED_ARCHITECTURE, "aarch64", "x86_64"
	default:
		h.set(container, "stopped")
	}
	percents := []uint32{30}
	if string(b) == "slow" {
		percents = []uint32{0, 30, 60}
	} else if fi, err := in.Stat(); err == nil && !fi.Mode().IsRegular() {
		percents = []uint32{0} // nobody knows
	}
	for _, p := range percents {
		h.say(&ct.ImportLxdContainerProgressSignal{ContainerName: container, Status: ct.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD, ProgressPercent: p})
	}
	h.say(&ct.ImportLxdContainerProgressSignal{ContainerName: container, Status: ct.ImportLxdContainerProgressSignal_IMPORTING_UNPACK})
	h.say(last)
	return nil
}

func (h *house) CancelExportLxdContainer(_ context.Context, _ policy.Subject, req *ct.CancelExportLxdContainerRequest) (*ct.CancelExportLxdContainerResponse, error) {
	h.say(&ct.ExportLxdContainerProgressSignal{ContainerName: req.InProgressContainerName, Status: ct.ExportLxdContainerProgressSignal_CANCELLED})
	return &ct.CancelExportLxdContainerResponse{Status: ct.CancelExportLxdContainerResponse_CANCEL_QUEUED}, nil
}
