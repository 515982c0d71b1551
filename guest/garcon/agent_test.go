package garcon_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guest/garcon"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(carryTo); path != "" {
		carry(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is for what happens soon.
const patience = time.Minute

const token = "6f1f0a44-3b0c-4a51-9f0f-2d8f4a7be0aa"

var empty = &vmtoolspb.EmptyMessage{}

// A host is the ContainerListener of one, on a Unix socket in the place of
// vsock port 8889.
type host struct {
	pb.UnimplementedContainerListenerServer
	t      *testing.T
	refuse chan error // taken by ContainerReady first
	ready  chan *pb.ContainerStartupInfo
	ended  chan *pb.ContainerShutdownInfo
	files  chan string
	lines  chan *pb.ApplyAnsiblePlaybookProgressInfo
	slow   chan struct{} // closed, if there is one, before FileWatchTriggered is answered
	// mustReady has reports refused until ContainerReady is taken, and unready
	// tells of it.
	mustReady bool
	isReady   atomic.Bool
	unready   chan struct{}
	away      func() // ends it
}

func newHost(t *testing.T) *host {
	return &host{
		t: t, refuse: make(chan error, 8), ready: make(chan *pb.ContainerStartupInfo, 8),
		ended: make(chan *pb.ContainerShutdownInfo, 8), files: make(chan string, 64),
		lines: make(chan *pb.ApplyAnsiblePlaybookProgressInfo, 64),
	}
}

func (h *host) ContainerReady(_ context.Context, m *pb.ContainerStartupInfo) (*vmtoolspb.EmptyMessage, error) {
	select {
	case err := <-h.refuse:
		return nil, err
	default:
	}
	h.isReady.Store(true)
	h.ready <- m
	return empty, nil
}

func (h *host) ContainerShutdown(_ context.Context, m *pb.ContainerShutdownInfo) (*vmtoolspb.EmptyMessage, error) {
	h.ended <- m
	return empty, nil
}

func (h *host) FileWatchTriggered(_ context.Context, m *pb.FileWatchTriggeredInfo) (*vmtoolspb.EmptyMessage, error) {
	h.files <- m.GetPath()
	if h.slow != nil {
		<-h.slow
	}
	return empty, nil
}

func (h *host) ApplyAnsiblePlaybookProgress(_ context.Context, m *pb.ApplyAnsiblePlaybookProgressInfo) (*vmtoolspb.EmptyMessage, error) {
	if h.mustReady && !h.isReady.Load() {
		h.unready <- struct{}{}
		return nil, status.Error(codes.FailedPrecondition, "the agent has not said that it is ready")
	}
	h.lines <- m
	return empty, nil
}

// serve answers on a socket until the returned function is called.
func (h *host) serve(path string) (stop func()) {
	h.t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		h.t.Fatal(err)
	}
	face := grpc.NewServer()
	pb.RegisterContainerListenerServer(face, h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		face.Serve(l)
	}()
	h.away = func() {
		face.Stop()
		<-done
	}
	return h.away
}

// A container is an agent with sockets in a directory for vsock ports.
type container struct {
	t    *testing.T
	dir  string
	home string
	conf garcon.Config
	stop context.CancelFunc
	done chan error
	says chan string
}

func newContainer(t *testing.T) *container {
	t.Helper()
	dir, err := os.MkdirTemp("", "garcon-") // a short name, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &container{t: t, dir: dir, home: filepath.Join(dir, "home"), says: make(chan string, 16)}
	if err := os.Mkdir(c.home, 0o755); err != nil {
		t.Fatal(err)
	}
	c.conf = garcon.Config{
		User:      session.User{Name: "somebody", Home: c.home},
		Environ:   []string{"PATH=" + dir + "/bin:/usr/bin:/bin", "HOME=" + c.home},
		TokenPath: filepath.Join(dir, "token"),
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.hostPath())
		},
		Listen: func(port uint32) (net.Listener, error) {
			return net.Listen("unix", c.port(port))
		},
		VshdPath: filepath.Join(dir, "vshd"),
		SFTPPath: filepath.Join(dir, "no-sftp-server"),
		Packages: packagekit.NewClient(),
		Status:   func(state string) { c.says <- state },
		Log:      slog.New(slog.DiscardHandler),
	}
	return c
}

func (c *container) hostPath() string        { return filepath.Join(c.dir, "host") }
func (c *container) port(port uint32) string { return filepath.Join(c.dir, strconv.Itoa(int(port))) }

func (c *container) write(name, text string, mode os.FileMode) {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		c.t.Fatal(err)
	}
}

// start runs the agent until the test, or end, ends it.
func (c *container) start() {
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.done = make(chan error, 1)
	go func() { c.done <- garcon.Run(ctx, c.conf) }()
	c.t.Cleanup(c.end)
}

func (c *container) end() {
	c.t.Helper()
	if c.done == nil {
		return
	}
	c.stop()
	if err := <-c.done; err != nil {
		c.t.Errorf("the agent failed: %v", err)
	}
	c.done = nil
}

// dial returns a client of the agent on a port.
func (c *container) dial(port uint32) pb.GarconClient {
	c.t.Helper()
	conn, err := grpc.NewClient("unix:"+c.port(port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return pb.NewGarconClient(conn)
}

// up is a container that the host has taken.
func up(t *testing.T, prepare func(*container)) (*container, *host, pb.GarconClient) {
	t.Helper()
	c, h := newContainer(t), newHost(t)
	t.Cleanup(h.serve(c.hostPath()))
	c.write("token", token, 0o644)
	if prepare != nil {
		prepare(c)
	}
	c.start()
	m := next(t, h.ready)
	return c, h, c.dial(m.GetGarconPort())
}

// next takes what should come soon.
func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestHandshake(t *testing.T) {
	c, h := newContainer(t), newHost(t)
	ports := c.tried()
	// The first one is taken, by another container.
	listen, first := c.conf.Listen, true
	c.conf.Listen = func(port uint32) (net.Listener, error) {
		l, err := listen(port)
		if first && err == nil {
			l.Close()
			first, err = false, syscall.EADDRINUSE
		}
		return l, err
	}
	h.refuse <- status.Error(codes.FailedPrecondition, "the VM is not known yet")
	c.start()
	if said := next(t, c.says); !strings.Contains(said, "token") {
		t.Fatalf("the agent says %q, want that it waits for the token", said)
	}
	c.write("token", token+"and more", 0o644) // no more than 36 bytes count
	if said := next(t, c.says); !strings.HasPrefix(said, "READY=1\n") {
		t.Fatalf("the agent says %q, want READY=1", said)
	}
	stop := h.serve(c.hostPath()) // only now
	taken, port := next(t, ports), next(t, ports)
	if port != after(taken) {
		t.Errorf("port %d is tried after %d", port, taken)
	}
	if m := next(t, h.ready); m.GetToken() != token || m.GetGarconPort() != port || m.GetSftpPort() != 0 {
		t.Errorf("ContainerReady says %v, not port %d", m, port)
	}

	// The host's service ends, and another one knows nothing of us.
	stop()
	t.Cleanup(h.serve(c.hostPath()))
	if m := next(t, h.ready); m.GetToken() != token || m.GetGarconPort() != port || m.GetSftpPort() != 0 {
		t.Errorf("the second ContainerReady says %v", m)
	}

	c.end()
	if m := next(t, h.ended); m.GetToken() != token {
		t.Errorf("ContainerShutdown says %v", m)
	}
	if said := next(t, c.says); said != "STOPPING=1" {
		t.Errorf("the agent says %q at its end", said)
	}
}

// A host that comes back, and takes no report of an agent that has not said
// again that it is there, hears how it ended what began before.
func TestTheEndIsToldToTheNextHost(t *testing.T) {
	c, h, g := up(t, func(c *container) {
		c.write("bin/ansible-playbook", "#!/bin/sh\necho on\nuntil test -e "+c.dir+"/go; do sleep 0.01; done\ntouch "+c.dir+"/gone\n", 0o755)
	})
	if resp, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: "x"}); err != nil || resp.GetStatus() != pb.ApplyAnsiblePlaybookResponse_STARTED {
		t.Fatalf("ApplyAnsiblePlaybook: %v, %v", resp, err)
	}
	next(t, h.lines)
	h.away()
	c.write("go", "", 0o644)
	c.read("gone")

	h = newHost(t)
	h.unready = make(chan struct{}, 64)
	for range 6 { // until what waits has been tried, too
		h.refuse <- status.Error(codes.FailedPrecondition, "the VM is not known yet")
	}
	h.mustReady = true
	t.Cleanup(h.serve(c.hostPath()))
	next(t, h.unready)
	next(t, h.ready)
	for {
		m := next(t, h.lines)
		if m.GetStatus() == pb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED {
			return
		}
		if m.GetStatus() != pb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS {
			t.Fatalf("the end is %v", m)
		}
	}
}

// Whatever hangs: the host hears of the end, and the agent ends before systemd
// kills it.
func TestEndWithinTheUnitsTime(t *testing.T) {
	unit, err := os.ReadFile("../../packaging/image/container/files/usr/lib/systemd/user/cros-garcon.service")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(unit), "\nTimeoutStopSec=")
	seconds, err := strconv.Atoi(strings.SplitN(text, "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	release, stuck := make(chan struct{}), make(chan struct{})
	c, h, g := up(t, func(c *container) {
		c.conf.Parts = func(garcon.Tools) (garcon.Parts, error) {
			return garcon.Parts{Run: func(context.Context) { defer close(stuck); <-release }}, nil
		}
		c.write("bin/ansible-playbook", "#!/bin/sh\ntrap '' TERM\necho on\nexec sleep 3600\n", 0o755)
		if err := os.Mkdir(filepath.Join(c.home, "Documents"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	defer func() { close(release); <-stuck }()
	h.slow = make(chan struct{})
	defer close(h.slow)
	if resp, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: "x"}); err != nil || resp.GetStatus() != pb.ApplyAnsiblePlaybookResponse_STARTED {
		t.Fatalf("ApplyAnsiblePlaybook: %v, %v", resp, err)
	}
	next(t, h.lines)
	if resp, err := g.AddFileWatch(deadline(t), &pb.AddFileWatchRequest{Path: "Documents"}); err != nil || resp.GetStatus() != pb.AddFileWatchResponse_SUCCEEDED {
		t.Fatalf("AddFileWatch: %v, %v", resp, err)
	}
	c.write("home/Documents/a", "text", 0o644)
	next(t, h.files) // and no answer to it
	limit := time.After(time.Duration(seconds) * time.Second)
	c.stop()
	select {
	case <-h.ended:
	case <-limit:
		t.Fatal("the host does not hear of the end")
	}
	select {
	case err := <-c.done:
		if c.done = nil; err != nil {
			t.Error(err)
		}
	case <-limit:
		t.Fatal("the agent does not end")
	}
}

// tried tells which ports the agent tries.
func (c *container) tried() <-chan uint32 {
	ports, listen := make(chan uint32, 64), c.conf.Listen
	c.conf.Listen = func(port uint32) (net.Listener, error) {
		ports <- port
		return listen(port)
	}
	return ports
}

// after is the agent's next port.
func after(port uint32) uint32 {
	if port == 19999 {
		return 10000
	}
	return port + 1
}

// The host knows an agent that reports again from another one by its ports.
func TestAnotherAgentHasOtherPorts(t *testing.T) {
	c, h := newContainer(t), newHost(t)
	c.write("token", token, 0o644)
	c.write("sftp-server", "#!/bin/sh\n", 0o755)
	c.conf.SFTPPath = filepath.Join(c.dir, "sftp-server")
	t.Cleanup(h.serve(c.hostPath()))
	agents, files, between := map[uint32]bool{}, map[uint32]bool{}, map[uint32]bool{}
	for range 4 {
		c.start()
		m := next(t, h.ready)
		for _, port := range []uint32{m.GetGarconPort(), m.GetSftpPort()} {
			if port < 10000 || port > 19999 {
				t.Errorf("port %d", port)
			}
		}
		agents[m.GetGarconPort()], files[m.GetSftpPort()] = true, true
		between[m.GetSftpPort()-m.GetGarconPort()] = true
		c.end()
	}
	if len(agents) == 1 || len(files) == 1 || len(between) == 1 {
		t.Errorf("four agents listen at %v and %v", agents, files)
	}
}

func TestNoFreePort(t *testing.T) {
	c := newContainer(t)
	c.write("token", token, 0o644)
	tried := map[uint32]bool{}
	c.conf.Listen = func(port uint32) (net.Listener, error) {
		tried[port] = true
		return nil, syscall.EADDRINUSE
	}
	if err := garcon.Run(deadline(t), c.conf); err == nil || !strings.Contains(err.Error(), "from 10000 to 19999 are taken") {
		t.Errorf("the agent ends with %v", err)
	}
	if len(tried) != 10000 || !tried[10000] || !tried[19999] {
		t.Errorf("%d ports were tried", len(tried))
	}
	var port uint32
	c.conf.Listen = func(p uint32) (net.Listener, error) {
		port = p
		return nil, syscall.EAFNOSUPPORT
	}
	if err := garcon.Run(deadline(t), c.conf); err == nil || !strings.Contains(err.Error(), "vsock port "+strconv.Itoa(int(port))) {
		t.Errorf("the agent ends with %v", err)
	}
}

func TestSessionInfo(t *testing.T) {
	c, _, g := up(t, nil)
	info, err := g.GetGarconSessionInfo(deadline(t), &pb.GetGarconSessionInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetStatus() != pb.GetGarconSessionInfoResponse_SUCCEEDED || info.GetContainerUsername() != "somebody" ||
		info.GetContainerHomedir() != c.home || info.GetSftpVsockPort() != 0 {
		t.Errorf("GetGarconSessionInfo says %v", info)
	}
	debug, err := g.GetDebugInformation(deadline(t), &pb.GetDebugInformationRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"user: somebody", "kernel: ", "free below ", "file watches: 0"} {
		if !strings.Contains(debug.GetDebugInformation(), want) {
			t.Errorf("no %q in the debug information %q", want, debug.GetDebugInformation())
		}
	}
}

func TestNotForThisMachine(t *testing.T) {
	_, _, g := up(t, nil)
	arc, err := g.ConfigureForArcSideload(deadline(t), &pb.ConfigureForArcSideloadRequest{})
	if err != nil || arc.GetStatus() != pb.ConfigureForArcSideloadResponse_FAILED || arc.GetFailureReason() == "" {
		t.Errorf("ConfigureForArcSideload: %v, %v", arc, err)
	}
	chunnel, err := g.ConnectChunnel(deadline(t), &pb.ConnectChunnelRequest{ChunneldPort: 7, TargetTcp4Port: 8})
	if err != nil || chunnel.GetSuccess() || chunnel.GetFailureReason() == "" {
		t.Errorf("ConnectChunnel: %v, %v", chunnel, err)
	}
	if _, err := g.GetIcon(deadline(t), &pb.IconRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("GetIcon without the part: %v", err)
	}
}

// Bounds that a request crosses.
func TestLargeRequests(t *testing.T) {
	_, _, g := up(t, nil)
	_, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: strings.Repeat("a", 5<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request of 5 MiB: %v", err)
	}
	resp, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: strings.Repeat("a", 1<<20+1)})
	if err != nil || resp.GetStatus() != pb.ApplyAnsiblePlaybookResponse_FAILED || !strings.Contains(resp.GetFailureReason(), "1048576") {
		t.Errorf("a playbook of a byte too much: %v, %v", resp, err)
	}
}

func TestFileWatch(t *testing.T) {
	c, h, g := up(t, func(c *container) {
		if err := os.Mkdir(filepath.Join(c.home, "Documents"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	add, err := g.AddFileWatch(deadline(t), &pb.AddFileWatchRequest{Path: "Documents"})
	if err != nil || add.GetStatus() != pb.AddFileWatchResponse_SUCCEEDED {
		t.Fatalf("AddFileWatch: %v, %v", add, err)
	}
	c.write("home/Documents/a", "text", 0o644)
	if path := next(t, h.files); path != "Documents" {
		t.Errorf("a change in %q is reported", path)
	}
	remove, err := g.RemoveFileWatch(deadline(t), &pb.RemoveFileWatchRequest{Path: "Documents"})
	if err != nil || remove.GetStatus() != pb.RemoveFileWatchResponse_SUCCEEDED {
		t.Errorf("RemoveFileWatch: %v, %v", remove, err)
	}
	remove, err = g.RemoveFileWatch(deadline(t), &pb.RemoveFileWatchRequest{Path: "Documents"})
	if err != nil || remove.GetStatus() != pb.RemoveFileWatchResponse_FAILED {
		t.Errorf("a second RemoveFileWatch: %v, %v", remove, err)
	}
	add, err = g.AddFileWatch(deadline(t), &pb.AddFileWatchRequest{Path: "../x"})
	if err != nil || add.GetStatus() != pb.AddFileWatchResponse_FAILED || add.GetFailureReason() == "" {
		t.Errorf("AddFileWatch above home: %v, %v", add, err)
	}
}

func TestLaunchVshd(t *testing.T) {
	c, _, g := up(t, func(c *container) {
		// In vshd's place, something that tells how it was started.
		c.write("vshd", "#!/bin/sh\n(echo \"$*\"; pwd; env) >"+c.dir+"/told.part\nmv "+c.dir+"/told.part "+c.dir+"/told\n", 0o755)
		c.conf.Environ = append(c.conf.Environ, "NOTIFY_SOCKET=/no", "XDG_RUNTIME_DIR=/run/user/1000", "GTK_IM_MODULE=other")
	})
	resp, err := g.LaunchVshd(deadline(t), &pb.LaunchVshdRequest{Port: 4711, ContainerFeatures: []pb.ContainerFeature{
		pb.ContainerFeature_ENABLE_GTK3_IME_SUPPORT, pb.ContainerFeature_ENABLE_VIRTUAL_KEYBOARD_SUPPORT}})
	if err != nil || !resp.GetSuccess() {
		t.Fatalf("LaunchVshd: %v, %v", resp, err)
	}
	told := c.read("told")
	for _, want := range []string{"--inherit_env --forward_to_host_port=4711\n", c.home + "\n", "XDG_RUNTIME_DIR=/run/user/1000\n",
		"GTK_IM_MODULE=cros\n", "CROS_IM_VIRTUAL_KEYBOARD=1\n"} {
		if !strings.Contains(told, want) {
			t.Errorf("no %q in %q", want, told)
		}
	}
	if strings.Contains(told, "NOTIFY_SOCKET") || strings.Contains(told, "QT_IM_MODULE") {
		t.Errorf("vshd has too much: %q", told)
	}
	resp, err = g.LaunchVshd(deadline(t), &pb.LaunchVshdRequest{})
	if err != nil || resp.GetSuccess() || resp.GetFailureReason() == "" {
		t.Errorf("LaunchVshd without a port: %v, %v", resp, err)
	}
	if err := os.Remove(c.conf.VshdPath); err != nil {
		t.Fatal(err)
	}
	resp, err = g.LaunchVshd(deadline(t), &pb.LaunchVshdRequest{Port: 1})
	if err != nil || resp.GetSuccess() || !strings.Contains(resp.GetFailureReason(), c.conf.VshdPath) {
		t.Errorf("LaunchVshd without a vshd: %v, %v", resp, err)
	}
}

// read waits for a file that another process makes.
func (c *container) read(name string) string {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if text, err := os.ReadFile(filepath.Join(c.dir, name)); err == nil {
			return string(text)
		}
	}
	c.t.Fatalf("no file %s", name)
	return ""
}

func TestPlaybook(t *testing.T) {
	_, h, g := up(t, func(c *container) {
		// In ansible's place: what matters here is what the agent makes of it.
		c.write("bin/ansible-playbook", "#!/bin/sh\necho one\nfor f; do :; done\ncat $f\n", 0o755)
	})
	resp, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: "two\n"})
	if err != nil || resp.GetStatus() != pb.ApplyAnsiblePlaybookResponse_STARTED {
		t.Fatalf("ApplyAnsiblePlaybook: %v, %v", resp, err)
	}
	var lines []string
	for {
		m := next(t, h.lines)
		if m.GetToken() != token {
			t.Fatalf("progress with the token %q", m.GetToken())
		}
		if m.GetStatus() != pb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS {
			if m.GetStatus() != pb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED {
				t.Errorf("the end is %v", m)
			}
			break
		}
		lines = append(lines, m.GetStatusString()...)
	}
	if got := strings.Join(lines, " "); got != "one two" {
		t.Errorf("lines %q", got)
	}
}
