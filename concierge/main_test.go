package concierge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	guestpb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// patience bounds what a test waits for; nothing is asserted on it.
const patienceOfTests = time.Minute

func init() {
	// A supervisor's children die with the thread that started them.
	runtime.LockOSThread()
}

// TestMain plays every process of a VM: the real supervisor, and a fake
// hypervisor and guest. Real ones run in test/e2e.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "run":
			os.Exit(supervise())
		case vmm.CleanCommand:
			if err := vmm.CleanDir("."); err != nil {
				os.Exit(fatal(err))
			}
			os.Exit(0)
		case "hypervisor":
			os.Exit(hypervise(os.Getenv(hypervisorEnv)))
		case "--guest-cid":
			os.Exit(guest(os.Args[4], os.Args[6]))
		}
	}
	runtime.UnlockOSThread()
	goleak.VerifyTestMain(m)
}

// What the fake processes do comes in the environment.
const (
	hypervisorEnv = "CONCIERGE_TEST_HYPERVISOR" // words for hypervise
	guestEnv      = "CONCIERGE_TEST_GUEST"      // mute, refuses, stays, hangs, "says:" and what it says instead of OK
	heardEnv      = "CONCIERGE_TEST_HEARD"      // the file in which it notes what it is told
)

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// supervise is daemon/auberge-vm with the fake driver.
func supervise() int {
	control := os.NewFile(3, "control")
	l, err := net.FileListener(control)
	if err != nil {
		return fatal(err)
	}
	control.Close()
	unix.CloseOnExec(4)
	unix.CloseOnExec(5)
	self, err := os.Executable()
	if err != nil {
		return fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fatal(err)
	}
	err = vmm.NewSupervisor(vmm.SupervisorConfig{Dir: dir, Control: l.(*net.UnixListener), PeerUID: uint32(os.Geteuid()),
		Lifeline: os.NewFile(4, "lifeline"), LifelineReader: os.NewFile(5, "lifeline reader"),
		Driver: driver{self}, Backend: self, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}).Run(context.Background())
	if err != nil {
		return fatal(err)
	}
	return 0
}

type driver struct{ program string }

func (d driver) Command(_ *vmm.Spec, files []*os.File, monitor *os.File) (*exec.Cmd, error) {
	cmd := exec.Command(d.program, "hypervisor")
	cmd.ExtraFiles = append(append([]*os.File{}, files...), monitor)
	return cmd, nil
}

func (driver) Monitor(context.Context, string) (vmm.Monitor, error) {
	return nil, errors.New("the fake has none")
}

// hypervise does what a list of words says, and then waits for a signal.
func hypervise(words string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	slow := ""
	for word := range strings.FieldsSeq(words) {
		verb, arg, _ := strings.Cut(word, ":")
		switch verb {
		case "print":
			fmt.Println(arg)
		case "exit":
			code, _ := strconv.Atoi(arg)
			return code
		case "slow": // to end, until it is let go
			slow = arg
		}
	}
	<-term
	if slow != "" {
		rendezvous(filepath.Join(slow, "asked"), os.O_WRONLY)
		rendezvous(filepath.Join(slow, "go"), os.O_RDONLY)
	}
	return 0
}

// rendezvous opens a FIFO, which takes until somebody has opened the other
// end.
func rendezvous(fifo string, flag int) error {
	f, err := os.OpenFile(fifo, flag, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// guest is a vsock backend with a guest behind it whose agent reports at once.
func guest(device, path string) int {
	l, err := net.Listen("unix", path)
	if err != nil {
		return fatal(err)
	}
	if _, err := net.Listen("unix", device); err != nil {
		return fatal(err)
	}
	fault := os.Getenv(guestEnv)
	agent := &agentListener{conns: make(chan net.Conn)}
	s := grpc.NewServer()
	guestpb.RegisterMaitredServer(s, maitredServer{fault: fault})
	go s.Serve(agent)
	if fault != "mute" {
		go func() {
			c, err := grpc.NewClient("unix:"+vsock.EndpointPath(path, vsock.PortStartupListener), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				os.Exit(fatal(err))
			}
			if _, err := guestpb.NewStartupListenerClient(c).VmReady(context.Background(), &guestpb.EmptyMessage{}); err != nil {
				os.Exit(fatal(err))
			}
		}()
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fatal(err)
		}
		go func() {
			line := make([]byte, len("CONNECT 8888\n"))
			if _, err := io.ReadFull(c, line); err != nil || string(line) != "CONNECT 8888\n" {
				c.Close()
				return
			}
			if text, ok := strings.CutPrefix(fault, "says:"); ok {
				io.WriteString(c, text)
				io.Copy(io.Discard, c)
				c.Close()
				return
			}
			io.WriteString(c, "OK 1\n")
			agent.conns <- c
		}()
	}
}

type agentListener struct{ conns chan net.Conn }

func (l *agentListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l *agentListener) Close() error              { return nil }
func (l *agentListener) Addr() net.Addr            { return vsock.Addr{} }

type maitredServer struct {
	guestpb.UnimplementedMaitredServer
	fault string
}

func (m maitredServer) ConfigureNetwork(context.Context, *guestpb.NetworkConfigRequest) (*guestpb.EmptyMessage, error) {
	if m.fault == "refuses" {
		return nil, errors.New("there is no such interface")
	}
	return &guestpb.EmptyMessage{}, nil
}

func (maitredServer) SetResolvConfig(_ context.Context, r *guestpb.SetResolvConfigRequest) (*guestpb.EmptyMessage, error) {
	hear("servers " + strings.Join(r.ResolvConfig.Nameservers, " "))
	return &guestpb.EmptyMessage{}, nil
}

func (m maitredServer) SetTime(ctx context.Context, _ *guestpb.SetTimeRequest) (*guestpb.EmptyMessage, error) {
	if m.fault == "hangs" {
		<-ctx.Done()
	}
	hear("time")
	return &guestpb.EmptyMessage{}, nil
}

func (m maitredServer) PrepareToSuspend(ctx context.Context, e *guestpb.EmptyMessage) (*guestpb.EmptyMessage, error) {
	if m.fault == "sleepless" {
		return nil, errors.New("the disk does not answer")
	}
	hear("prepare")
	return e, nil
}

func (maitredServer) SetTimezone(_ context.Context, r *guestpb.SetTimezoneRequest) (*guestpb.EmptyMessage, error) {
	hear("zone " + r.TimezoneName)
	return &guestpb.EmptyMessage{}, nil
}

func (maitredServer) OnHostNetworkChanged(context.Context, *guestpb.EmptyMessage) (*guestpb.EmptyMessage, error) {
	hear("network")
	return &guestpb.EmptyMessage{}, nil
}

func (maitredServer) UpdateStorageBalloon(context.Context, *guestpb.UpdateStorageBalloonRequest) (*guestpb.UpdateStorageBalloonResponse, error) {
	hear("space")
	return &guestpb.UpdateStorageBalloonResponse{Result: guestpb.UpdateStorageBalloonResult_SUCCESS}, nil
}

// hear tells the test what the host has told the guest.
func hear(line string) {
	f, err := os.OpenFile(os.Getenv(heardEnv), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	f.WriteString(line + "\n")
}

// Shutdown has no power over the hypervisor. One that stays says that it will
// be off in a moment; the others do not know the call.
func (m maitredServer) Shutdown(ctx context.Context, e *guestpb.EmptyMessage) (*guestpb.EmptyMessage, error) {
	if m.fault == "stays" {
		return e, nil
	}
	return m.UnimplementedMaitredServer.Shutdown(ctx, e)
}

// StartTermina takes until it is let go, by the FIFOs in a directory.
func (m maitredServer) StartTermina(context.Context, *guestpb.StartTerminaRequest) (*guestpb.StartTerminaResponse, error) {
	if dir, ok := strings.CutPrefix(m.fault, "slow:"); ok {
		rendezvous(filepath.Join(dir, "asked"), os.O_WRONLY)
		rendezvous(filepath.Join(dir, "go"), os.O_RDONLY)
	}
	return &guestpb.StartTerminaResponse{MountResult: guestpb.StartTerminaResponse_SUCCESS, FreeBytes: 7, FreeBytesHasValue: true}, nil
}

// ResizeFilesystem succeeds at once, but not with a guest that is "full".
func (maitredServer) ResizeFilesystem(_ context.Context, r *guestpb.ResizeFilesystemRequest) (*guestpb.ResizeFilesystemResponse, error) {
	resizedTo.Store(r.Size)
	return &guestpb.ResizeFilesystemResponse{Status: guestpb.ResizeFilesystemResponse_STARTED}, nil
}

func (m maitredServer) GetResizeStatus(context.Context, *guestpb.EmptyMessage) (*guestpb.GetResizeStatusResponse, error) {
	if m.fault == "full" {
		return &guestpb.GetResizeStatusResponse{CurrentSize: 1 << 20}, nil
	}
	return &guestpb.GetResizeStatusResponse{CurrentSize: resizedTo.Load()}, nil
}

// resizedTo is the size of the guest's file system.
var resizedTo atomic.Uint64

// fakeOpener opens with this process's rights and remembers for whom.
type fakeOpener struct {
	mu    sync.Mutex
	calls []string
}

func (o *fakeOpener) Open(_ context.Context, c policy.Caller, path string, mode policy.Mode) (*os.File, error) {
	o.mu.Lock()
	o.calls = append(o.calls, fmt.Sprintf("%d %s %s", c.UID, mode, path))
	o.mu.Unlock()
	flag := os.O_RDONLY
	if mode == policy.ReadWrite {
		flag = os.O_RDWR
	}
	return os.OpenFile(path, flag, 0)
}

// recorder remembers the signals, as "name of the signal, name of the VM".
type recorder struct {
	mu      sync.Mutex
	said    []string
	changes []change
}

func (r *recorder) Emit(_ uint32, signal string, msg proto.Message) {
	name := "" // some are about no VM
	if fd := msg.ProtoReflect().Descriptor().Fields().ByName("name"); fd != nil {
		name = msg.ProtoReflect().Get(fd).String()
	}
	r.mu.Lock()
	r.said = append(r.said, strings.TrimSuffix(signal, "Signal")+" "+name)
	r.mu.Unlock()
}

// EmitChange remembers what became of VMs and operations.
func (r *recorder) EmitChange(_ uint32, signal, _ string, sequence uint64, what map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, change{signal, sequence, what})
}

// A change is one signal of our own interface.
type change struct {
	signal   string
	sequence uint64
	what     map[string]any
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.said
	r.said = nil
	return said
}

// A bed is a place for services, one after the other.
type bed struct {
	t      *testing.T
	cfg    Config
	opener *fakeOpener
	events *recorder
	log    *syncbuf.Buffer
}

// newBed makes the directories of a service and a guest image.
func newBed(t *testing.T) *bed {
	t.Helper()
	// Short, because socket addresses are.
	dir, err := os.MkdirTemp("", "bed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endProcesses(t, dir)
		os.RemoveAll(dir)
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, opener: &fakeOpener{}, events: &recorder{}, log: &syncbuf.Buffer{}}
	b.cfg = Config{StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run"), ImageDir: filepath.Join(dir, "image"),
		Accel: vmm.AccelTCG, Vsock: vsock.ModeUser, Network: NetworkRestricted, Pool: DefaultPool, VMGroup: -1,
		Launcher: &vmm.Launcher{Program: self}, Opener: b.opener, Events: b.events,
		Log: slog.New(slog.NewTextHandler(b.log, nil))}
	b.cfg.Host.Passwd = filepath.Join(dir, "passwd")
	b.accounts(64101, 5)
	writeImage(t, b.cfg.ImageDir)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service said:\n%s", b.log)
		}
	})
	return b
}

// accounts makes the host's users those with the given numbers.
func (b *bed) accounts(uids ...int) {
	b.t.Helper()
	var text strings.Builder
	for _, uid := range uids {
		fmt.Fprintf(&text, "u%d:x:%d:%d::/:/bin/sh\n", uid, uid, uid)
	}
	next := b.cfg.Host.Passwd + ".next"
	if err := os.WriteFile(next, []byte(text.String()), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(next, b.cfg.Host.Passwd); err != nil {
		b.t.Fatal(err)
	}
}

func writeImage(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	manifest := `{"files":[{"name":"vmlinux","size":6},{"name":"initramfs.cpio","size":6},{"name":"rootfs.squashfs","size":6}]}`
	for name, text := range map[string]string{"manifest.json": manifest, "vmlinux": "kernel", "initramfs.cpio": "initrd", "rootfs.squashfs": "rootfs"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// addTools makes the image one with containers.
func addTools(t *testing.T, dir string) {
	t.Helper()
	manifest := filepath.Join(dir, "manifest.json")
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(text), `{"files":[`, `{"features":["tremplin"],"files":[{"name":"tools.squashfs","size":6},`, 1)
	for name, text := range map[string]string{manifest: more, filepath.Join(dir, "tools.squashfs"): "tools!"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// serve starts a service, which ends with the test.
func (b *bed) serve() *Service {
	b.t.Helper()
	s, err := New(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Close)
	return s
}

// gone checks that no VM has left anything.
func (b *bed) gone() {
	b.t.Helper()
	for _, d := range []string{"vms", "records"} {
		entries, err := os.ReadDir(filepath.Join(b.cfg.RuntimeDir, d))
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			b.t.Errorf("left behind: %s/%s", d, e.Name())
		}
	}
}

// awaitGone waits until no VM is in the table.
func (b *bed) awaitGone(s *Service) {
	b.t.Helper()
	s.mu.Lock()
	var all []*vm
	for _, v := range s.vms {
		all = append(all, v)
	}
	s.mu.Unlock()
	for _, v := range all {
		select {
		case <-v.gone:
		case <-time.After(patienceOfTests):
			b.t.Fatalf("VM %q does not go", v.key.name)
		}
	}
}

// alice is a subject that uses her own VMs.
var alice = subject(64101)

func subject(uid uint32) policy.Subject {
	return policy.Subject{Caller: policy.Caller{UID: uid}, Owner: policy.Owner{UID: uid, Word: strconv.Itoa(int(uid)), All: true}}
}

// small starts a VM with little memory, which the host surely has.
func (b *bed) small(s *Service, name string) (*pb.StartVmResponse, error) {
	b.t.Helper()
	memory := uint64(minMemoryMiB)
	if err := s.ConfigureVm(b.t.Context(), alice, name, Settings{MemoryMiB: &memory}); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), patienceOfTests)
	defer cancel()
	return s.StartVm(ctx, alice, &pb.StartVmRequest{Name: name}, nil)
}

func (b *bed) stop(s *Service, name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patienceOfTests)
	defer cancel()
	if _, err := s.StopVm(ctx, alice, &pb.StopVmRequest{Name: name}); err != nil {
		b.t.Fatal(err)
	}
}
