package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/cicerone"
	"github.com/auberge-vm/auberge/daemon/setup/setuptest"
	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

// The VM and the container there are, which the seeds name too.
const (
	fuzzName = "x"
	fuzzCID  = 33
	fuzzPort = 10000 // the container's agent's
)

var fuzzOwner = policy.Owner{UID: 64101, Word: "64101"}

// A guestOf answers what the agents in a VM are asked, with whatever bytes it
// is told to, and plays the concierge that knows this VM alone.
type guestOf struct {
	f   testing.TB
	dir string
	// answer is nil while the agents answer as they should.
	answer atomic.Pointer[[]byte]
}

// bytesCodec takes messages as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = bytesCodec{}

func newGuestOf(f testing.TB) *guestOf {
	f.Helper()
	dir, err := os.MkdirTemp("", "fz") // short, because socket addresses are
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	g := &guestOf{f: f, dir: dir}
	for _, port := range []uint32{vsock.PortTremplin, fuzzPort} {
		server := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(g.serve))
		served := make(chan struct{})
		l, err := net.Listen("unix", g.path(port))
		if err != nil {
			f.Fatal(err)
		}
		go func() { defer close(served); server.Serve(l) }()
		f.Cleanup(func() { server.Stop(); <-served })
	}
	return g
}

func (g *guestOf) path(port uint32) string { return filepath.Join(g.dir, fmt.Sprint(port)) }

// serve answers any call of the host.
func (g *guestOf) serve(_ any, s grpc.ServerStream) error {
	var req []byte
	if err := s.RecvMsg(&req); err != nil {
		return err
	}
	if foreign := g.answer.Load(); foreign != nil {
		return s.SendMsg(foreign)
	}
	var good proto.Message = &vmtoolspb.EmptyMessage{}
	switch method, _ := grpc.MethodFromServerStream(s); {
	case strings.HasSuffix(method, "/GetGarconSessionInfo"):
		good = &containerpb.GetGarconSessionInfoResponse{Status: containerpb.GetGarconSessionInfoResponse_SUCCEEDED, ContainerUsername: "x"}
	case strings.HasSuffix(method, "/GetContainerInfo"):
		good = &tremplinpb.GetContainerInfoResponse{Status: tremplinpb.GetContainerInfoResponse_RUNNING, Ipv4Address: 1}
	}
	b, err := proto.Marshal(good)
	if err != nil {
		return err
	}
	return s.SendMsg(&b)
}

func (g *guestOf) vm() cicerone.VM {
	return cicerone.VM{CID: fuzzCID, PID: 1, Name: fuzzName, Owner: fuzzOwner, Containers: true, Address: "100.115.92.2"}
}

func (g *guestOf) ListVMs(context.Context) ([]cicerone.VM, error) { return []cicerone.VM{g.vm()}, nil }

func (g *guestOf) OpenEndpoints(_ context.Context, cid uint32) (vm cicerone.VM, e cicerone.Endpoints, err error) {
	if cid != fuzzCID {
		return vm, e, errors.New("there is no such VM")
	}
	for port, to := range map[uint32]*net.Listener{vsock.PortTremplinListener: &e.Tremplin, vsock.PortCrashListener: &e.Crash, vsock.PortContainerListener: &e.Container} {
		// Those of a run of the VM before this one may not be closed yet.
		os.Remove(g.path(port))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.path(port), Net: "unix"})
		if err != nil {
			return vm, e, err
		}
		l.SetUnlinkOnClose(false)
		*to = l
	}
	return g.vm(), e, nil
}

func (g *guestOf) Dial(ctx context.Context, _, port uint32) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", g.path(port))
}

func (g *guestOf) TremplinReady(context.Context, uint32) error { return nil }

func (g *guestOf) ContainerKeys(context.Context, uint32, string) (string, string, error) {
	return "key", "host key", nil
}

// Emit implements cicerone.Events: what is announced must be what can be sent.
func (g *guestOf) Emit(owner uint32, name string, msg proto.Message) {
	if _, err := proto.Marshal(msg); err != nil || owner != fuzzOwner.UID {
		panic(fmt.Sprintf("%s to %d: %v", name, owner, err))
	}
}

// noDesktop takes nothing.
type noDesktop struct{}

func (noDesktop) UpdateApplicationList(context.Context, uint32, *appspb.ApplicationList) error {
	return cicerone.ErrNoDesktop
}
func (noDesktop) UpdateMimeTypes(context.Context, uint32, *appspb.MimeTypes) error {
	return cicerone.ErrNoDesktop
}
func (noDesktop) LaunchTerminal(context.Context, uint32, *appspb.TerminalParams) error {
	return cicerone.ErrNoDesktop
}
func (noDesktop) SelectFile(context.Context, uint32, *appspb.SelectFileRequest) error {
	return cicerone.ErrNoDesktop
}
func (noDesktop) OpenUrl(context.Context, uint32, string) error { return cicerone.ErrNoDesktop }

// run makes the VM known and its container one whose agent has reported.
func (g *guestOf) run(t *testing.T, s *cicerone.Service, sub policy.Subject) {
	t.Helper()
	g.answer.Store(nil)
	is, err := s.IsContainerRunning(t.Context(), sub, &ciceronepb.IsContainerRunningRequest{VmName: fuzzName, ContainerName: fuzzName})
	if err == nil && is.ContainerRunning {
		return
	}
	_, err = s.NotifyVmStarted(t.Context(), sub, &ciceronepb.NotifyVmStartedRequest{VmName: fuzzName, Cid: fuzzCID})
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.GetContainerToken(t.Context(), sub, &ciceronepb.ContainerTokenRequest{VmName: fuzzName, ContainerName: fuzzName})
	if err != nil {
		t.Fatal(err)
	}
	line, err := grpc.NewClient("unix:"+g.path(vsock.PortContainerListener), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	_, err = containerpb.NewContainerListenerClient(line).ContainerReady(t.Context(),
		&containerpb.ContainerStartupInfo{Token: token.ContainerToken, GarconPort: fuzzPort})
	if err != nil {
		t.Fatal(err)
	}
}

// callOwn hands the parts of a request to a method of our own interface, and
// says whether there is one of that name.
func callOwn(t *testing.T, o own, sub policy.Subject, name string, request []byte) bool {
	t.Helper()
	handler := reflect.ValueOf(o).MethodByName(name)
	known := false
	for _, m := range dbus.Cicerone1Interface(nil).Methods {
		known = known || m.Name == name
	}
	if !known || !handler.IsValid() {
		return false // Subscribe and Unsubscribe are package dbus's own
	}
	ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
	defer cancel()
	args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(sub)}
	rest := string(request)
	for i := len(args); i < handler.Type().NumIn(); i++ {
		switch handler.Type().In(i).Kind() {
		case reflect.String:
			word, more, _ := strings.Cut(rest, "\x00")
			rest = more
			args = append(args, reflect.ValueOf(strings.ToValidUTF8(word, "")))
		case reflect.Uint32:
			args = append(args, reflect.ValueOf(uint32(fuzzCID)))
		default:
			f, err := os.CreateTemp(t.TempDir(), "file")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			args = append(args, reflect.ValueOf(f))
		}
	}
	results := setuptest.Ends(t, name, func() []reflect.Value { return handler.Call(args) })
	if list, ok := results[0].Interface().(*appspb.ApplicationList); ok && list != nil {
		if _, err := proto.Marshal(list); err != nil {
			t.Fatalf("%s answers what cannot be sent: %v", name, err)
		}
	}
	return true
}

// fuzzPatience is how long callers wait for what guests do not answer as they
// should.
const fuzzPatience = 100 * time.Millisecond

// FuzzHandlers: whatever a request of any method of both tables says, and
// whatever the guest's agents answer meanwhile, the handler comes to an end with
// the caller's time, answers and announces what can be sent, and when the VM
// has stopped nothing is left of it.
func FuzzHandlers(f *testing.F) {
	f.Cleanup(func() { goleak.VerifyNone(f) })
	g := newGuestOf(f)
	service, err := cicerone.New(f.Context(), cicerone.Config{StateDir: filepath.Join(g.dir, "state"),
		Concierge: g, Events: g, Desktop: noDesktop{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(service.Close)
	sub := policy.Subject{Caller: policy.Caller{UID: fuzzOwner.UID}, Owner: fuzzOwner}
	handlers := &setuptest.Handlers{Methods: dbus.CiceroneService(nil).Methods, Handler: service, Subject: sub, Patience: fuzzPatience}
	fields := []byte{0x08, 0x01, 0x12, 0x01, 'x', 0x1a, 0x01, 'x', 0x22, 0x01, 'x'}
	handlers.Seeds(f, func(name string, request []byte) {
		f.Add(name, request, []byte{})
		f.Add(name, request, fields)
	})
	for _, m := range dbus.Cicerone1Interface(nil).Methods {
		f.Add(m.Name, []byte("x\x00x\x00x"), fields)
		f.Add(m.Name, []byte{}, []byte{})
	}
	f.Fuzz(func(t *testing.T, name string, request, answer []byte) {
		g.run(t, service, sub)
		g.answer.Store(&answer)
		if !callOwn(t, own{Service: service}, sub, name, request) {
			name = handlers.Call(t, name, request)
		}
		stands, err := service.GetServiceInfo(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		if stands["operations"] == uint32(0) {
			return // and the next call finds the VM as it is
		}
		if _, err := service.NotifyVmStopped(t.Context(), sub, &ciceronepb.NotifyVmStoppedRequest{VmName: fuzzName}); err != nil {
			t.Fatal(err)
		}
		for what, n := range must(service.GetServiceInfo(t.Context(), sub)) {
			if n != uint32(0) {
				t.Fatalf("%s left %v %s", name, n, what)
			}
		}
		if left := must(os.ReadDir(filepath.Join(g.dir, "state"))); len(left) > 4 {
			t.Fatalf("%s left %v", name, left)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
