package apps_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guest/garcon/apps"
	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = time.Minute

// A host is the far end, with the limits of the real one.
type host struct {
	pb.UnimplementedContainerListenerServer
	lists     chan *pb.UpdateApplicationListRequest
	mimes     chan map[string]string
	counts    chan uint32
	terminals chan []string

	mu          sync.Mutex
	refuse      int // so many lists
	refuseMimes int // so many of MIME types
}

// refused says whether something is not taken, by a count or by its size.
func (h *host) refused(count *int, tooMuch bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *count > 0 || tooMuch {
		*count--
		return status.Error(codes.ResourceExhausted, "too much, or too often")
	}
	return nil
}

func (h *host) UpdateApplicationList(_ context.Context, req *pb.UpdateApplicationListRequest) (*vmtoolspb.EmptyMessage, error) {
	if err := h.refused(&h.refuse, len(req.GetApplication()) > 4096 || proto.Size(req) > 2<<20); err != nil {
		return nil, err
	}
	h.lists <- req
	return &vmtoolspb.EmptyMessage{}, nil
}

func (h *host) PendingUpdateApplicationListCalls(_ context.Context, req *pb.PendingAppListUpdateCount) (*vmtoolspb.EmptyMessage, error) {
	h.counts <- req.GetCount()
	return &vmtoolspb.EmptyMessage{}, nil
}

func (h *host) UpdateMimeTypes(_ context.Context, req *pb.UpdateMimeTypesRequest) (*vmtoolspb.EmptyMessage, error) {
	if err := h.refused(&h.refuseMimes, len(req.GetMimeTypeMappings()) > 8192); err != nil {
		return nil, err
	}
	h.mimes <- req.GetMimeTypeMappings()
	return &vmtoolspb.EmptyMessage{}, nil
}

func (h *host) OpenTerminal(_ context.Context, req *pb.OpenTerminalRequest) (*vmtoolspb.EmptyMessage, error) {
	h.terminals <- req.GetParams()
	return &vmtoolspb.EmptyMessage{}, nil
}

// A place is a container as far as applications are concerned.
type place struct {
	t            *testing.T
	home, system string
	bin          string
	host         *host
	owner        apps.Owner
	environ      []string
	more         []string // directories of data
	coalesce     time.Duration
	*apps.Manager
}

func newPlace(t *testing.T, change ...func(*place)) *place {
	t.Helper()
	p := &place{t: t, home: t.TempDir(), system: t.TempDir(), bin: t.TempDir(), host: &host{
		lists: make(chan *pb.UpdateApplicationListRequest, 1000), mimes: make(chan map[string]string, 100),
		counts: make(chan uint32, 1000), terminals: make(chan []string, 100),
	}}
	p.environ = []string{"PATH=" + p.bin + ":/usr/bin:/bin", "HOME=" + p.home}
	for _, f := range change {
		f(p)
	}
	face := grpc.NewServer()
	pb.RegisterContainerListenerServer(face, p.host)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); face.Serve(l) }()
	t.Cleanup(func() { face.Stop(); <-served })
	client, err := hostcalls.New("token", func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	p.Manager = apps.New(apps.Config{
		Log:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Host: client, Owner: p.owner, Environ: p.environ,
		Paths:    apps.Paths{Home: p.home, ConfigHome: p.home + "/.config", DataDirs: append([]string{p.home + "/.local/share", p.system}, p.more...)},
		Coalesce: max(p.coalesce, 20*time.Millisecond),
		Retry:    100 * time.Millisecond,
		Pixmaps:  p.system + "/pixmaps",
	})
	return p
}

// run has the manager run until the test ends.
func (p *place) run() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
}

func (p *place) write(path, text string) string {
	p.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.system, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	// As a package manager does it, so that nobody sees half of it.
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *place) script(name, text string) {
	p.t.Helper()
	path := p.write(filepath.Join(p.bin, name), "#!/bin/sh\n"+text)
	if err := os.Chmod(path, 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func entry(name, more string) string {
	return "[Desktop Entry]\nType=Application\nName=" + name + "\nExec=" + name + " %F\n" + more
}

// next is the next list, as ids.
func (p *place) next() []*pb.Application {
	p.t.Helper()
	select {
	case req := <-p.host.lists:
		if req.GetToken() != "token" {
			p.t.Errorf("the list came with the token %q", req.GetToken())
		}
		return req.GetApplication()
	case <-time.After(patience):
		p.t.Fatal("no list came")
		return nil
	}
}

func ids(list []*pb.Application) []string {
	names := []string{}
	for _, a := range list {
		names = append(names, a.GetDesktopFileId())
	}
	return names
}

// until reads lists until one has just these ids.
func (p *place) until(want ...string) []*pb.Application {
	p.t.Helper()
	for {
		list := p.next()
		got := ids(list)
		same := len(got) == len(want)
		for i := 0; same && i < len(got); i++ {
			same = got[i] == want[i]
		}
		if same {
			return list
		}
		p.t.Logf("a list of %q, waiting for %q", got, want)
	}
}

// file waits for a file that a process leaves.
func (p *place) file(path string) string {
	p.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(path); err == nil {
			return string(text)
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("%s did not come", path)
		}
	}
}

// gone waits until there is no such file.
func (p *place) gone(path string) {
	p.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Lstat(path); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("%s is still there", path)
		}
	}
}
