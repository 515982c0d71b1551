package tremplin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestNamesOfContainers(t *testing.T) {
	for _, good := range []string{"penguin", "a", "a-1", strings.Repeat("a", 63)} {
		if err := checkName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "1a", "A", "a_b", "a.b", "../a", "a/b", "a-", "-a", "auberge-create-1", strings.Repeat("a", 64), "a\x00", "é"} {
		if checkName(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if temp := tempName("create"); !strings.HasPrefix(temp, ownPrefix) || !nameForm.MatchString(temp) {
		t.Error(temp)
	}
}

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termina.env")
	if s, err := readSettings(path); err != nil || s.privileged || s.bridgeAddress().String() != "100.115.92.193/28" {
		t.Error(s, err)
	}
	for text, want := range map[string]string{
		"LXD_IPV4_SUBNET=10.1.2.0/24\nALLOW_PRIVILEGED_CONTAINERS=true\n": "10.1.2.1/24",
		"ALLOW_PRIVILEGED_CONTAINERS=true\nLXD_IPV4_SUBNET=10.1.2.9/24":   "10.1.2.9/24",
	} {
		os.WriteFile(path, []byte(text), 0o600)
		if s, err := readSettings(path); err != nil || !s.privileged || s.bridgeAddress().String() != want {
			t.Error(s, err)
		}
	}
	for _, bad := range []string{"LXD_IPV4_SUBNET=x", "LXD_IPV4_SUBNET=10.0.0.0/31", "LXD_IPV4_SUBNET=fe80::/64"} {
		os.WriteFile(path, []byte(bad), 0o600)
		if s, err := readSettings(path); err == nil {
			t.Errorf("%s: %v", bad, s)
		}
	}
}

func TestImageSources(t *testing.T) {
	s := &Server{cfg: DefaultConfig()}
	s.cfg.Milestone = 42
	got, err := s.source(&pb.CreateContainerRequest{ImageServer: "https://images.example.org/%d", ImageAlias: "debian/13"})
	if r, ok := got.(remoteImage); err != nil || !ok || r.server != "https://images.example.org/42" {
		t.Error(got, err)
	}
	if got, err := s.source(&pb.CreateContainerRequest{}); err != nil || got != (shippedImage{s}) {
		t.Error(got, err)
	}
	for _, bad := range []*pb.CreateContainerRequest{
		{ImageServer: "https://x"}, {ImageAlias: "x"}, {RootfsPath: "x"}, {MetadataPath: "x"},
		{RootfsPath: "x", MetadataPath: "x", ImageServer: "https://x", ImageAlias: "x"},
		{ImageServer: "file:///etc", ImageAlias: "x"}, {ImageServer: "https://u:p@x", ImageAlias: "x"}, {ImageServer: "https://", ImageAlias: "x"},
		{ImageServer: "https://x", ImageAlias: "../x"}, {ImageServer: "https://x", ImageAlias: "x y"}, {ImageServer: "unix:/x", ImageAlias: "x"},
	} {
		if got, err := s.source(bad); err == nil {
			t.Errorf("%v: %v", bad, got)
		}
	}
}

func TestProgressOfADownload(t *testing.T) {
	var told []int32
	now, size := time.Unix(1000, 0), int64(0)
	d := download{idle: time.Minute, now: func() time.Time { return now }, size: func() int64 { return size }, progress: func(p int32) { told = append(told, p) }}
	look := func(text string, after time.Duration, bytes int64) error {
		now, size = now.Add(after), size+bytes
		return d.look(incus.Operation{Metadata: map[string]any{"download_progress": text}})
	}
	for _, text := range []string{"", "metadata: 100% (1GB/s)", "rootfs: 10% (1MB/s)", "rootfs: 9% (1MB/s)", "rootfs: 55% (1MB/s)"} {
		if err := look(text, 59*time.Second, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(told, []int32{10, 55}) {
		t.Errorf("told %v", told)
	}
	// Bytes are a sign of life, whatever the percentage.
	if err := look("rootfs: 55% (1MB/s)", 59*time.Second, 1); err != nil {
		t.Fatal(err)
	}
	if err := look("rootfs: 55% (1MB/s)", 59*time.Second, 0); err != nil {
		t.Fatal(err)
	}
	if err := look("rootfs: 55% (1MB/s)", time.Second, 0); !errors.Is(err, errDownloadIdle) {
		t.Fatal(err)
	}
}

func TestOsRelease(t *testing.T) {
	o := parseOsRelease([]byte("PRETTY_NAME=\"Debian GNU/Linux \\\"13\\\"\"\nID=debian\n# x\nVERSION_ID='13'\nNAME=\"Debian\nBAD\n=\nVERSION=" + strings.Repeat("x", 9000)))
	if o.PrettyName != `Debian GNU/Linux "13"` || o.Id != "debian" || o.VersionId != "13" || len(o.Version) != maxOsValue {
		t.Error(o)
	}
}

func TestListeningPorts(t *testing.T) {
	const head = "  sl  local_address rem_address   st\n"
	got := parsePorts(strings.NewReader(head +
		"   0: 00000000:1F90 00000000:0000 0A 0\n   1: 0100007F:0016 00000000:0000 0A\n   2: 00000000:1F90 00000000:0000 0A\n" +
		"   3: 0100007F:C350 0100007F:1F90 01\n   4: 00000000:08AE 00000000:0000 0A\n   5: 00000000:14EB 00000000:0000 0A\n   6: x\n"))
	if !slices.Equal(got, []uint32{22, 8080}) {
		t.Error(got)
	}
	if startTime(os.Getpid()) == "" {
		t.Error("no start time of this process")
	}
}

func FuzzParsePorts(f *testing.F) {
	f.Add("   0: 00000000:1F90 00000000:0000 0A 0\n")
	f.Fuzz(func(t *testing.T, s string) {
		if p := parsePorts(strings.NewReader(s)); len(p) > maxPorts {
			t.Error(len(p))
		}
	})
}

func TestOneJobForEachContainer(t *testing.T) {
	j := newJobs()
	begun := make(chan struct{})
	if err := j.run("penguin", jobCreate, func(ctx context.Context) { close(begun); <-ctx.Done() }); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := j.run("penguin", jobDelete, func(context.Context) {}); err == nil || !strings.Contains(err.Error(), "being created") {
		t.Error(err)
	}
	if j.cancelled("penguin", jobExport) != nil || j.cancelled("other", jobCreate) != nil {
		t.Error("what is not there was cancelled")
	}
	<-j.cancelled("penguin", jobCreate)
	if err := j.run("penguin", jobDelete, func(context.Context) {}); err != nil {
		t.Error(err)
	}
	j.wait()
	for i := range maxJobs {
		if err := j.run("c"+strings.Repeat("x", i), jobStart, func(ctx context.Context) { <-ctx.Done() }); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.run("more", jobStart, func(context.Context) {}); err == nil {
		t.Error("too many")
	}
	j.stop()
	j.wait()
	if err := j.run("late", jobStart, func(context.Context) {}); err == nil {
		t.Error("began after the end")
	}
}

func TestAJobThatHangsIsGivenUp(t *testing.T) {
	j := newJobs()
	j.limits = map[string]time.Duration{jobStart: time.Millisecond}
	var why error
	cancelled := true
	err := j.run("penguin", jobStart, func(ctx context.Context) {
		<-ctx.Done()
		why, cancelled = context.Cause(ctx), wasCancelled(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	j.wait()
	if why == nil || cancelled || why.Error() != "the container penguin was not started within 1ms" {
		t.Error(why, cancelled)
	}
	for _, kind := range []string{jobCreate, jobDelete, jobStart, jobStop, jobExport, jobImport} {
		if limits[kind] == 0 {
			t.Errorf("what is to be %s may hang for ever", kind)
		}
	}
}

type listener struct {
	pb.UnimplementedTremplinListenerServer
	mu    sync.Mutex
	fails int
	got   []string
}

func (l *listener) hear(s string) (*pb.EmptyMessage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails > 0 {
		l.fails--
		return nil, status.Error(codes.FailedPrecondition, "not yet")
	}
	l.got = append(l.got, s)
	return &pb.EmptyMessage{}, nil
}

func (l *listener) TremplinReady(context.Context, *pb.TremplinStartupInfo) (*pb.EmptyMessage, error) {
	return l.hear("ready")
}

func (l *listener) ContainerShutdown(_ context.Context, p *pb.ContainerShutdownInfo) (*pb.EmptyMessage, error) {
	return l.hear(p.ContainerName + " has stopped")
}

func (l *listener) UpdateStartStatus(_ context.Context, p *pb.ContainerStartProgress) (*pb.EmptyMessage, error) {
	return l.hear(p.ContainerName + " " + p.Status.String())
}

func (l *listener) UpdateStartLxdStatus(_ context.Context, p *pb.StartLxdProgress) (*pb.EmptyMessage, error) {
	return l.hear("lxd " + p.Status.String())
}

func (l *listener) UpdateExportStatus(_ context.Context, p *pb.ContainerExportProgress) (*pb.EmptyMessage, error) {
	return l.hear(fmt.Sprintf("%s %s %d/s", p.ContainerName, p.Status, p.ProgressSpeed))
}

func (l *listener) UpdateImportStatus(_ context.Context, p *pb.ContainerImportProgress) (*pb.EmptyMessage, error) {
	return l.hear(fmt.Sprintf("%s %s %d%% %d/s %s", p.ContainerName, p.Status, p.ProgressPercent, p.ProgressSpeed, p.FailureReason))
}

func (l *listener) heard() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.got)
}

func (l *listener) UpdateCreateStatus(_ context.Context, p *pb.ContainerCreationProgress) (*pb.EmptyMessage, error) {
	return l.hear(p.ContainerName + " " + p.Status.String())
}

func TestTheHostHearsInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host")
	o, err := newOutbox(quiet(), func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { o.run(ctx) })
	defer running.Wait()
	defer cancel()
	o.announce()
	for i := range int32(3000) {
		o.create("a", pb.ContainerCreationProgress_DOWNLOADING, i, "")
	}
	o.create("b", pb.ContainerCreationProgress_DOWNLOADING, 1, "")
	o.create("a", pb.ContainerCreationProgress_CREATED, 100, "")
	o.create("b", pb.ContainerCreationProgress_FAILED, 0, "bad \xff"+strings.Repeat("x", 9000))
	// Only now is there a host, which wants to be asked again.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	host := &listener{fails: 3}
	srv := grpc.NewServer()
	pb.RegisterTremplinListenerServer(srv, host)
	go srv.Serve(l)
	defer srv.Stop()
	flush, done := context.WithTimeout(t.Context(), time.Minute)
	defer done()
	o.flush(flush)
	host.mu.Lock()
	defer host.mu.Unlock()
	if want := []string{"ready", "a DOWNLOADING", "b DOWNLOADING", "a CREATED", "b FAILED"}; !slices.Equal(host.got, want) {
		t.Errorf("the host heard %q", host.got)
	}
}

func TestTransfersWaitForTheirCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "moves")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	m := newTransfers(quiet())
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.serve(ctx, l) }()
	const id = "01234567-89ab-cdef-0123-456789ABCDEF"
	open := func(name string) (net.Conn, error) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := vsock.WriteFrame(c, []byte(name)); err != nil {
			return c, err
		}
		_, err = vsock.ReadFrame(c, 16)
		return c, err
	}
	for _, bad := range []string{"", "../x", strings.Repeat("x", 36), strings.Repeat("x", 100)} {
		c, err := open(bad)
		if err == nil {
			t.Errorf("%q was taken", bad)
		}
		c.Close()
	}
	c, err := open(id)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := open(id); err == nil {
		t.Error("one name was taken twice")
	} else {
		d.Close()
	}
	mine, err := m.use(transferPrefix + id)
	if err != nil {
		t.Fatal(err)
	}
	mine.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it is another's connection")
	}
	if _, err := m.use(transferPrefix + id); err == nil {
		t.Error("used twice")
	}
	cancel()
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
