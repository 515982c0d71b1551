package cicerone_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/test/syncbuf"
)

// A container that changes something all the time does not have its VM's
// record written as often, and nobody else waits for it.
func TestRecordIsWrittenOnceForMany(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "hostile", 33)
	token, _ := m.running(s, "penguin", 10000)
	other, _ := w.up(s, "another", 34) // of as long a name
	release := cicerone.HoldSaves(s, 33)
	before := runtime.NumGoroutine()
	for i := range int32(200) {
		must(t)(m.container.InhibitScreensaver(t.Context(), &cpb.InhibitScreensaverInfo{Token: token, Cookie: i}))
	}
	if n := runtime.NumGoroutine() - before; n > 50 {
		t.Errorf("%d goroutines for 200 changes", n)
	}
	for range 200 {
		<-w.signals
	}
	other.running(s, "penguin", 10000)
	release()
	s.Close()
	// The last change is written.
	m.halt()
	w.serve()
	for i := range uint32(200) {
		if g := next[*pb.UninhibitScreensaverSignal](w, "UninhibitScreensaver"); g.Cookie != i {
			t.Fatalf("%v", g)
		}
	}
}

// Who has no token, and one container, leave something to the others.
func TestShares(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	other, _ := m.running(s, "other", 10001)
	pending := func(token string) error {
		_, err := m.container.PendingUpdateApplicationListCalls(t.Context(), &cpb.PendingAppListUpdateCount{Token: token})
		return err
	}
	for range 1500 {
		pending("")
		pending("11111111-2222-3333-4444-555555555555")
	}
	if err := pending(token); err != nil {
		t.Errorf("after calls without a token: %v", err)
	}
	refused := 0
	for range 2000 {
		if pending(other) != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Error("two thousand calls are answered")
	}
	if err := pending(token); err != nil {
		t.Errorf("after another container's calls: %v", err)
	}
}

// A guest that has something logged all the time has a few lines, and another
// VM its own.
func TestLinesAreFew(t *testing.T) {
	w := newWorld(t)
	var log syncbuf.Buffer
	s := w.serve(func(cfg *cicerone.Config) { cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	m, _ := w.up(s, "loud", 33)
	token, _ := m.running(s, "penguin", 10000)
	other, _ := w.up(s, "other", 34)
	crashes := pb.NewCrashListenerClient(m.line(7779))
	for i := range 300 {
		switch i % 3 {
		case 0: // nobody listens there
			m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 19999})
		case 1:
			m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: "none"})
		case 2:
			crashes.SendFailureReport(t.Context(), &pb.FailureReport{})
		}
	}
	other.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: "none"})
	if n := strings.Count(log.String(), "vm=loud"); n == 0 || n > 200 { // 60 in a minute, however long this took
		t.Errorf("%d lines of the VM", n)
	}
	if !strings.Contains(log.String(), "vm=other") {
		t.Error("the other VM has no line")
	}
}

// Lists, which are long, are few.
func TestListsAreFew(t *testing.T) {
	for name, tell := range map[string]func(c cpb.ContainerListenerClient, token string, n int) error{
		"apps": func(c cpb.ContainerListenerClient, token string, n int) error {
			_, err := c.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token, Application: manyApplications()[:n]})
			return err
		},
		"types": func(c cpb.ContainerListenerClient, token string, n int) error {
			types := map[string]string{}
			for i := range n {
				types[fmt.Sprint(i)] = strings.Repeat("a", 250)
			}
			_, err := c.UpdateMimeTypes(t.Context(), &cpb.UpdateMimeTypesRequest{Token: token, MimeTypeMappings: types})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve()
			m, _ := w.up(s, "termina", 33)
			token, _ := m.running(s, "penguin", 10000)
			// Neither of too many entries nor of too many bytes.
			for _, n := range []int{8193, 8192} {
				if err := tell(m.container, token, n); status.Code(err) != codes.ResourceExhausted {
					t.Errorf("%d entries: %v", n, err)
				}
			}
			taken := 0
			for range 100 {
				switch err := tell(m.container, token, 1); status.Code(err) {
				case codes.OK:
					taken++
				case codes.ResourceExhausted:
				default:
					t.Fatal(err)
				}
			}
			if taken == 0 || taken > 50 {
				t.Errorf("%d of a hundred lists are taken", taken)
			}
			// It goes with its container.
			if n := len(glob(t, w, "*."+name)); n != 1 {
				t.Fatalf("%d lists are stored", n)
			}
			if _, err := s.DeleteLxdContainer(t.Context(), subject(), &pb.DeleteLxdContainerRequest{VmName: "termina", ContainerName: "penguin"}); err != nil {
				t.Fatal(err)
			}
			must(t)(m.tremplin.UpdateDeletionStatus(t.Context(), &tpb.ContainerDeletionProgress{ContainerName: "penguin", Status: tpb.ContainerDeletionProgress_DELETED}))
			eventually(t, "the list is removed", func() bool { return len(glob(t, w, "*."+name)) == 0 })
		})
	}
}

// The lists of a VM's containers are bounded together: they are kept as long as
// their containers run.
func TestListsOfAllContainers(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	long := []*cpb.Application{{DesktopFileId: strings.Repeat("a", 1<<20), Exec: strings.Repeat("b", 900<<10)}}
	taken := 0
	for i := range 10 {
		token, _ := m.running(s, fmt.Sprint("c", i), uint32(10000+i))
		switch _, err := m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token, Application: long}); status.Code(err) {
		case codes.OK:
			taken++
		case codes.ResourceExhausted:
		default:
			t.Fatal(err)
		}
		// One that gets shorter leaves room for others.
		if i == 8 {
			if _, err := m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token}); err != nil {
				t.Error(err)
			}
		}
	}
	if taken != 4 {
		t.Errorf("%d lists of almost 2 MiB are kept of one VM", taken)
	}
	got, err := s.ListApplications(t.Context(), subject(), "termina", "c0")
	if err != nil || len(got.Apps) != 1 || len(got.Apps[0].DesktopFileId) != 1<<20 {
		t.Errorf("the list that was kept: %d applications, %v", len(got.GetApps()), err)
	}
}

func glob(t *testing.T, w *world, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.state, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func (fakeGarcon) ApplyAnsiblePlaybook(context.Context, *cpb.ApplyAnsiblePlaybookRequest) (*cpb.ApplyAnsiblePlaybookResponse, error) {
	return &cpb.ApplyAnsiblePlaybookResponse{Status: cpb.ApplyAnsiblePlaybookResponse_STARTED}, nil
}

// What a playbook says is cut, as signals may have to wait in memory.
func TestPlaybookSaysMuch(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	if _, err := s.ApplyAnsiblePlaybook(t.Context(), subject(), &pb.ApplyAnsiblePlaybookRequest{VmName: "termina", Playbook: "---"}); err != nil {
		t.Fatal(err)
	}
	lines := make([]string, 1000)
	for i := range lines {
		lines[i] = strings.Repeat("a", 4000)
	}
	must(t)(m.container.ApplyAnsiblePlaybookProgress(t.Context(), &cpb.ApplyAnsiblePlaybookProgressInfo{Token: token,
		Status: cpb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS, StatusString: lines}))
	g := next[*pb.ApplyAnsiblePlaybookProgressSignal](w, "ApplyAnsiblePlaybookProgress")
	if n := proto.Size(g); n > 80<<10 || len(g.StatusString) < 10 {
		t.Errorf("%d bytes, %d lines", n, len(g.StatusString))
	}
}

// A slowTremplin fails to stop containers when it is told to.
type slowTremplin struct {
	tpb.UnimplementedTremplinServer
	begun, fail chan struct{}
}

func (f *slowTremplin) StopContainer(context.Context, *tpb.StopContainerRequest) (*tpb.StopContainerResponse, error) {
	close(f.begun)
	<-f.fail
	return &tpb.StopContainerResponse{Status: tpb.StopContainerResponse_FAILED, FailureReason: "stuck"}, nil
}

func (f *slowTremplin) GetContainerInfo(context.Context, *tpb.GetContainerInfoRequest) (*tpb.GetContainerInfoResponse, error) {
	return &tpb.GetContainerInfoResponse{Status: tpb.GetContainerInfoResponse_RUNNING, Ipv4Address: 0x05c07364}, nil
}

// Who is told that a container is being stopped is told how that ends.
func TestStopIsJoined(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m := w.boot("termina", 33)
	f := &slowTremplin{begun: make(chan struct{}), fail: make(chan struct{})}
	m.agent(8890, func(g *grpc.Server) { tpb.RegisterTremplinServer(g, f) })
	m.announce(s)
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
	m.running(s, "penguin", 10000)
	first := make(chan pb.StopLxdContainerResponse_Status, 1)
	stop := func() pb.StopLxdContainerResponse_Status {
		r, err := s.StopLxdContainer(t.Context(), subject(), &pb.StopLxdContainerRequest{VmName: "termina", ContainerName: "penguin"})
		if err != nil {
			t.Error(err)
		}
		return r.GetStatus()
	}
	go func() { first <- stop() }()
	<-f.begun
	if st := stop(); st != pb.StopLxdContainerResponse_STOPPING {
		t.Errorf("the second is told %v", st)
	}
	close(f.fail)
	if st := <-first; st != pb.StopLxdContainerResponse_FAILED {
		t.Errorf("the first is told %v", st)
	}
	if g := next[*pb.LxdContainerStoppingSignal](w, "LxdContainerStopping"); g.Status != pb.LxdContainerStoppingSignal_FAILED {
		t.Errorf("%v", g)
	}
	w.quiet()
}

// One user's files are few at a time, and left as they were.
func TestStreamsAreFew(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer out.Close()
	nonblocking := func() bool {
		flags, err := unix.FcntlInt(out.Fd(), unix.F_GETFL, 0) // Fd makes it block
		if err != nil {
			t.Fatal(err)
		}
		return flags&unix.O_NONBLOCK != 0
	}
	if nonblocking() {
		t.Fatal("the pipe does not block")
	}
	if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", out); err == nil {
		t.Fatal("an export without a stream begins")
	}
	if raw, err := out.SyscallConn(); err != nil {
		t.Fatal(err)
	} else if err := raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("the caller's pipe does not block any more (%v)", err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	streams, _ := m.transfers()
	begun := 0
	for i := range 20 {
		if err = s.ExportContainer(t.Context(), subject(), "termina", fmt.Sprint("c", i), out); err != nil {
			break
		}
		begun++
		defer (<-streams).Close()
	}
	if begun != 16 || !strings.Contains(fmt.Sprint(err), "in progress") {
		t.Errorf("%d begin, then: %v", begun, err)
	}
}

// Of VMs that are gone for good not everything is kept.
func TestRecordsOfStoppedVMsAreBounded(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	m.running(s, "penguin", 10000)
	old := time.Now().Add(-time.Hour)
	for i := range 300 {
		name := fmt.Sprint("gone", i)
		sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00\x00%s", uid, name))
		path := filepath.Join(w.state, hex.EncodeToString(sum[:16])+".json")
		if err := os.WriteFile(path, fmt.Appendf(nil, `{"uid":%d,"name":%q,"names":["penguin"]}`, uid, name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	runs, _ := w.up(s, "runs", 34)
	runs.running(s, "penguin", 10000)
	if _, err := s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "old records are removed", func() bool { return len(glob(t, w, "*.json")) == 257 })
	s.Close()
	// What runs, and what has just stopped, is known.
	s = w.serve()
	if !w.isRunning(s, "runs", "penguin") {
		t.Error("a VM that runs is forgotten")
	}
	again := w.boot("termina", 35)
	again.announce(s)
	if list, err := s.ListContainers(t.Context(), subject(), "termina"); err != nil || len(list) == 0 {
		t.Errorf("%v, %v", list, err)
	}
}
