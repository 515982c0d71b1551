package cicerone_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/cicerone"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

const uid = 4711

func subject() policy.Subject {
	return policy.Subject{Caller: policy.Caller{UID: uid}, Owner: policy.Owner{UID: uid, Word: fmt.Sprint(uid)}}
}

// A signal is one that was announced.
type signal struct {
	name string
	msg  proto.Message
}

// A world is what surrounds a service: a concierge whose VMs are directories
// of Unix sockets, and a desktop. It plays them to bring about sequences and
// faults that the real ones show seldom; the real stack runs in
// test/containers.
type world struct {
	t     testing.TB
	dir   string
	state string

	mu      sync.Mutex
	vms     map[uint32]*machine
	ready   []uint32 // of TremplinReady
	away    bool     // vm_concierge
	leaving bool     // it goes when it has been asked for a VM
	missed  int      // how often it was asked for VMs while it was away
	lists   []*appspb.ApplicationList
	types   []*appspb.MimeTypes
	// slow is read from before a list is taken, if it is there.
	slow    chan struct{}
	urls    []string
	dialogs chan *appspb.SelectFileRequest
	signals chan signal
}

func newWorld(t testing.TB) *world {
	// Addresses of sockets are short.
	dir, err := os.MkdirTemp("", "cic")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &world{t: t, dir: dir, state: filepath.Join(dir, "state"), vms: map[uint32]*machine{},
		dialogs: make(chan *appspb.SelectFileRequest, 100), signals: make(chan signal, 10000)}
}

// looksOften is for what must be seen without being told. Elsewhere a look would
// end what a test has begun only.
func looksOften(c *cicerone.Config) { c.WatchInterval = 50 * time.Millisecond }

// serve runs a service in the world.
func (w *world) serve(change ...func(*cicerone.Config)) *cicerone.Service {
	w.t.Helper()
	cfg := cicerone.Config{StateDir: w.state, Concierge: w, Events: w, Desktop: w, WatchInterval: time.Minute,
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
	for _, c := range change {
		c(&cfg)
	}
	s, err := cicerone.New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Close)
	return s
}

func (w *world) Emit(owner uint32, name string, msg proto.Message) {
	if owner != uid {
		w.t.Errorf("%s for uid %d", name, owner)
	}
	w.signals <- signal{name, msg}
}

// next returns the next signal, which must be that one.
func next[M proto.Message](w *world, name string) M {
	w.t.Helper()
	select {
	case s := <-w.signals:
		m, ok := s.msg.(M)
		if s.name != name || !ok {
			w.t.Fatalf("%s %v instead of %s", s.name, s.msg, name)
		}
		return m
	case <-time.After(patience):
		w.t.Fatalf("no %s", name)
	}
	panic("not reached")
}

// quiet fails when there was a signal that nobody has looked at.
func (w *world) quiet() {
	w.t.Helper()
	select {
	case s := <-w.signals:
		w.t.Errorf("one signal too many: %s %v", s.name, s.msg)
	default:
	}
}

func (w *world) ListVMs(context.Context) ([]cicerone.VM, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		w.missed++
		return nil, errors.New("vm_concierge is not there")
	}
	var all []cicerone.VM
	for _, m := range w.vms {
		all = append(all, m.info)
	}
	return all, nil
}

func (w *world) OpenEndpoints(_ context.Context, cid uint32) (cicerone.VM, cicerone.Endpoints, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.vms[cid]
	if m == nil || w.away {
		return cicerone.VM{}, cicerone.Endpoints{}, fmt.Errorf("no VM with CID %d", cid)
	}
	w.away = w.leaving
	return m.info, cicerone.Endpoints{Tremplin: m.endpoint(7778), Crash: m.endpoint(7779), Container: m.endpoint(8889)}, nil
}

func (w *world) Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	w.mu.Lock()
	away := w.away
	w.mu.Unlock()
	if away {
		return nil, errors.New("vm_concierge is not there")
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(w.dir, fmt.Sprintf("%d-%d", cid, port)))
}

func (w *world) TremplinReady(_ context.Context, cid uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = append(w.ready, cid)
	return nil
}

func (w *world) ContainerKeys(_ context.Context, _ uint32, container string) (string, string, error) {
	return "key of " + container, "host key", nil
}

func (w *world) UpdateApplicationList(_ context.Context, _ uint32, l *appspb.ApplicationList) error {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	if slow != nil {
		slow <- struct{}{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lists = append(w.lists, l)
	return nil
}
func (w *world) UpdateMimeTypes(_ context.Context, _ uint32, types *appspb.MimeTypes) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.types = append(w.types, types)
	return nil
}
func (w *world) LaunchTerminal(context.Context, uint32, *appspb.TerminalParams) error { return nil }
func (w *world) SelectFile(_ context.Context, _ uint32, r *appspb.SelectFileRequest) error {
	w.dialogs <- r
	return nil
}
func (w *world) OpenUrl(_ context.Context, _ uint32, u string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.urls = append(w.urls, u)
	return nil
}

// A machine is a VM's sockets.
type machine struct {
	w    *world
	info cicerone.VM
	host map[uint32]*net.UnixListener

	tremplinLine, containerLine *grpc.ClientConn
	tremplin                    tpb.TremplinListenerClient
	container                   cpb.ContainerListenerClient
}

// boot adds a VM to the world.
func (w *world) boot(name string, cid uint32, change ...func(*cicerone.VM)) *machine {
	w.t.Helper()
	m := &machine{w: w, host: map[uint32]*net.UnixListener{}, info: cicerone.VM{CID: cid, PID: 1000 + cid, Name: name, Containers: true,
		Owner: subject().Owner, Address: "100.115.92.2"}}
	for _, c := range change {
		c(&m.info)
	}
	for _, port := range []uint32{7778, 7779, 8889} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.path("h", port), Net: "unix"})
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { l.Close() })
		m.host[port] = l
	}
	m.tremplinLine, m.containerLine = m.line(7778), m.line(8889)
	m.tremplin, m.container = tpb.NewTremplinListenerClient(m.tremplinLine), cpb.NewContainerListenerClient(m.containerLine)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.vms[cid] = m
	return m
}

func (m *machine) path(kind string, port uint32) string {
	return filepath.Join(m.w.dir, fmt.Sprintf("%s%d-%d", kind, m.info.CID, port))
}

func (m *machine) line(port uint32) *grpc.ClientConn {
	c, err := grpc.NewClient("unix:"+m.path("h", port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		m.w.t.Fatal(err)
	}
	m.w.t.Cleanup(func() { c.Close() })
	return c
}

// endpoint is a descriptor of a listening socket, as the concierge hands it
// over.
func (m *machine) endpoint(port uint32) net.Listener {
	f, err := m.host[port].File()
	if err != nil {
		m.w.t.Error(err)
		return nil
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		m.w.t.Error(err)
	}
	return l
}

// halt takes the VM out of the world.
func (m *machine) halt() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	delete(m.w.vms, m.info.CID)
}

// agent serves something on a port of the VM until it is stopped.
func (m *machine) agent(port uint32, register func(*grpc.Server)) (stop func()) {
	m.w.t.Helper()
	l, err := net.Listen("unix", m.path("", port))
	if err != nil {
		m.w.t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	var once sync.Once
	stop = func() { once.Do(func() { s.Stop(); <-served }) }
	m.w.t.Cleanup(stop)
	return stop
}

// A fakeTremplin answers as it is told.
type fakeTremplin struct {
	tpb.UnimplementedTremplinServer
	mu     sync.Mutex
	lxd    tpb.StartLxdResponse_Status
	create tpb.CreateContainerResponse_Status
	start  tpb.StartContainerResponse_Status
	info   tpb.GetContainerInfoResponse_Status
	// address is what containers have, as the contract carries it.
	address uint32
	calls   []proto.Message
	// zoneErr is what SetTimezone fails with.
	zoneErr error
	// lxdAsked hears of each StartLxd, which is answered when lxdHold is closed.
	lxdAsked, lxdHold chan struct{}
}

func newTremplin(m *machine) *fakeTremplin {
	f := &fakeTremplin{lxd: tpb.StartLxdResponse_ALREADY_RUNNING, create: tpb.CreateContainerResponse_CREATING,
		start: tpb.StartContainerResponse_STARTING, info: tpb.GetContainerInfoResponse_RUNNING, address: wireAddress("100.115.192.5")}
	m.agent(8890, func(s *grpc.Server) { tpb.RegisterTremplinServer(s, f) })
	return f
}

// wireAddress is in network byte order, whatever this machine's.
func wireAddress(text string) uint32 {
	b := netip.MustParseAddr(text).As4()
	return binary.NativeEndian.Uint32(b[:])
}

func (f *fakeTremplin) note(m proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, m)
}

// last returns the last call with that message.
func last[M proto.Message](f *fakeTremplin) (m M) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if o, ok := c.(M); ok {
			m = o
		}
	}
	return m
}

func (f *fakeTremplin) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeTremplin) StartLxd(_ context.Context, r *tpb.StartLxdRequest) (*tpb.StartLxdResponse, error) {
	f.note(r)
	f.mu.Lock()
	asked, hold := f.lxdAsked, f.lxdHold
	f.mu.Unlock()
	if asked != nil {
		asked <- struct{}{}
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &tpb.StartLxdResponse{Status: f.lxd}, nil
}

// holdLxd lets StartLxd be answered only when hold is closed.
func (f *fakeTremplin) holdLxd() (asked <-chan struct{}, hold chan<- struct{}) {
	a, h := make(chan struct{}, 2), make(chan struct{})
	f.set(func() { f.lxdAsked, f.lxdHold = a, h })
	return a, h
}

func (f *fakeTremplin) CreateContainer(_ context.Context, r *tpb.CreateContainerRequest) (*tpb.CreateContainerResponse, error) {
	f.note(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	return &tpb.CreateContainerResponse{Status: f.create, FailureReason: "no room\x1b"}, nil
}

func (f *fakeTremplin) StartContainer(_ context.Context, r *tpb.StartContainerRequest) (*tpb.StartContainerResponse, error) {
	f.note(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	return &tpb.StartContainerResponse{Status: f.start, OsRelease: &tpb.OsRelease{Id: "debian"}}, nil
}

func (f *fakeTremplin) StopContainer(_ context.Context, r *tpb.StopContainerRequest) (*tpb.StopContainerResponse, error) {
	f.note(r)
	return &tpb.StopContainerResponse{Status: tpb.StopContainerResponse_STOPPING}, nil
}

func (f *fakeTremplin) DeleteContainer(_ context.Context, r *tpb.DeleteContainerRequest) (*tpb.DeleteContainerResponse, error) {
	f.note(r)
	return &tpb.DeleteContainerResponse{Status: tpb.DeleteContainerResponse_DELETING}, nil
}

func (f *fakeTremplin) SetUpUser(_ context.Context, r *tpb.SetUpUserRequest) (*tpb.SetUpUserResponse, error) {
	f.note(r)
	return &tpb.SetUpUserResponse{Status: tpb.SetUpUserResponse_SUCCESS, Username: r.ContainerUsername}, nil
}

func (f *fakeTremplin) GetContainerInfo(_ context.Context, r *tpb.GetContainerInfoRequest) (*tpb.GetContainerInfoResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &tpb.GetContainerInfoResponse{Status: f.info, Ipv4Address: f.address}, nil
}

func (f *fakeTremplin) SetTimezone(_ context.Context, r *tpb.SetTimezoneRequest) (*tpb.SetTimezoneResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.zoneErr != nil {
		return nil, f.zoneErr
	}
	f.calls = append(f.calls, r)
	return &tpb.SetTimezoneResponse{Successes: 1}, nil
}

func (f *fakeTremplin) ExportContainer(_ context.Context, r *tpb.ExportContainerRequest) (*tpb.ExportContainerResponse, error) {
	f.note(r)
	return &tpb.ExportContainerResponse{Status: tpb.ExportContainerResponse_EXPORTING}, nil
}

func (f *fakeTremplin) ImportContainer(_ context.Context, r *tpb.ImportContainerRequest) (*tpb.ImportContainerResponse, error) {
	f.note(r)
	return &tpb.ImportContainerResponse{Status: tpb.ImportContainerResponse_IMPORTING}, nil
}

func (f *fakeTremplin) CancelExportContainer(_ context.Context, r *tpb.CancelExportContainerRequest) (*tpb.CancelExportContainerResponse, error) {
	f.note(r)
	return &tpb.CancelExportContainerResponse{Status: tpb.CancelExportContainerResponse_CANCEL_QUEUED}, nil
}

func (f *fakeTremplin) GetDebugInfo(context.Context, *tpb.GetDebugInfoRequest) (*tpb.GetDebugInfoResponse, error) {
	return &tpb.GetDebugInfoResponse{DebugInformation: "Incus: 6.0\x1b[2J\ncontainer spare: Stopped, x86_64\ncontainer auberge-import-18c: Stopped, x86_64\n"}, nil
}

// A fakeGarcon answers what all agents can.
type fakeGarcon struct{ cpb.UnimplementedGarconServer }

func (fakeGarcon) GetGarconSessionInfo(context.Context, *cpb.GetGarconSessionInfoRequest) (*cpb.GetGarconSessionInfoResponse, error) {
	return &cpb.GetGarconSessionInfoResponse{Status: cpb.GetGarconSessionInfoResponse_SUCCEEDED, ContainerUsername: "ada", ContainerHomedir: "/home/ada", SftpVsockPort: 77}, nil
}

func (fakeGarcon) InstallLinuxPackage(context.Context, *cpb.InstallLinuxPackageRequest) (*cpb.InstallLinuxPackageResponse, error) {
	return &cpb.InstallLinuxPackageResponse{}, nil
}

func (fakeGarcon) GetIcon(_ context.Context, r *cpb.IconRequest) (*cpb.IconResponse, error) {
	resp := &cpb.IconResponse{DesktopIcons: []*cpb.DesktopIcon{{DesktopFileId: "never-asked"}}}
	for _, id := range r.DesktopFileIds {
		resp.DesktopIcons = append(resp.DesktopIcons, &cpb.DesktopIcon{DesktopFileId: id, Icon: []byte(id), Format: cpb.DesktopIcon_SVG})
	}
	return resp, nil
}

func (fakeGarcon) LaunchVshd(_ context.Context, r *cpb.LaunchVshdRequest) (*cpb.LaunchVshdResponse, error) {
	return &cpb.LaunchVshdResponse{Success: r.Port == 5000, FailureReason: "no shell"}, nil
}

func (fakeGarcon) AddFileWatch(context.Context, *cpb.AddFileWatchRequest) (*cpb.AddFileWatchResponse, error) {
	return &cpb.AddFileWatchResponse{Status: cpb.AddFileWatchResponse_SUCCEEDED}, nil
}

// A watcher is an agent that tells what it is to watch.
type watcher struct {
	fakeGarcon
	paths chan string
}

func (g watcher) AddFileWatch(_ context.Context, r *cpb.AddFileWatchRequest) (*cpb.AddFileWatchResponse, error) {
	g.paths <- r.Path
	if strings.HasPrefix(r.Path, "gone") {
		return &cpb.AddFileWatchResponse{Status: cpb.AddFileWatchResponse_FAILED, FailureReason: "no such directory"}, nil
	}
	return &cpb.AddFileWatchResponse{Status: cpb.AddFileWatchResponse_SUCCEEDED}, nil
}

func (fakeGarcon) RemoveFileWatch(context.Context, *cpb.RemoveFileWatchRequest) (*cpb.RemoveFileWatchResponse, error) {
	return &cpb.RemoveFileWatchResponse{Status: cpb.RemoveFileWatchResponse_SUCCEEDED}, nil
}

func (m *machine) garcon(port uint32) (stop func()) {
	return m.agent(port, func(s *grpc.Server) { cpb.RegisterGarconServer(s, fakeGarcon{}) })
}

// announce tells the service of the VM, as the concierge does.
func (m *machine) announce(s *cicerone.Service) {
	m.w.t.Helper()
	if _, err := s.NotifyVmStarted(m.w.t.Context(), subject(), &pb.NotifyVmStartedRequest{VmName: m.info.Name, Cid: m.info.CID}); err != nil {
		m.w.t.Fatal(err)
	}
}

// up is a VM with a tremplin that has reported.
func (w *world) up(s *cicerone.Service, name string, cid uint32) (*machine, *fakeTremplin) {
	w.t.Helper()
	m := w.boot(name, cid)
	f := newTremplin(m)
	m.announce(s)
	must(w.t)(m.tremplin.TremplinReady(w.t.Context(), &tpb.TremplinStartupInfo{}))
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
	return m, f
}

// running is a container whose agent has reported; it returns the token.
func (m *machine) running(s *cicerone.Service, name string, port uint32) (token string, stop func()) {
	m.w.t.Helper()
	r, err := s.GetContainerToken(m.w.t.Context(), subject(), &pb.ContainerTokenRequest{VmName: m.info.Name, ContainerName: name})
	if err != nil {
		m.w.t.Fatal(err)
	}
	stop = m.garcon(port)
	must(m.w.t)(m.container.ContainerReady(m.w.t.Context(), &cpb.ContainerStartupInfo{Token: r.ContainerToken, GarconPort: port}))
	next[*pb.ContainerStartedSignal](m.w, "ContainerStarted")
	return r.ContainerToken, stop
}

func (w *world) isRunning(s *cicerone.Service, vm, name string) bool {
	w.t.Helper()
	r, err := s.IsContainerRunning(w.t.Context(), subject(), &pb.IsContainerRunningRequest{VmName: vm, ContainerName: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.ContainerRunning
}

// must fails the test when a call has failed.
func must(t testing.TB) func(any, error) {
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for something that comes without a signal.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not yet: %s", what)
		}
	}
}
