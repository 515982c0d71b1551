package vmc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for.
const patience = 30 * time.Second

// A fake stands for vm_concierge behind the real tables and a real bus, to
// show what a real one does rarely. What a test does not set is not called.
type fake struct {
	dbus.Concierge
	dbus.Concierge1

	syncTimes func() *pb.SyncVmTimesResponse
	listVms   func() *pb.ListVmsResponse
	info      func() *pb.GetVmInfoResponse
	state     dbus.State
	usages    []map[string]any
	images    atomic.Pointer[[]map[string]any]
	// progress is what the operation that resizes a disk will say.
	progress chan *pb.DiskImageStatusResponse
}

func (f *fake) setImages(images ...map[string]any) { f.images.Store(&images) }

func (f *fake) ResizeDiskImage(_ context.Context, _ policy.Subject, req *pb.ResizeDiskImageRequest) (*pb.ResizeDiskImageResponse, error) {
	return &pb.ResizeDiskImageResponse{Status: pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS, CommandUuid: req.VmName}, nil
}

func (f *fake) DiskImageStatus(_ context.Context, _ policy.Subject, req *pb.DiskImageStatusRequest) (*pb.DiskImageStatusResponse, error) {
	next := <-f.progress
	next.CommandUuid = req.CommandUuid
	return next, nil
}

func (f *fake) SyncVmTimes(context.Context, policy.Subject) (*pb.SyncVmTimesResponse, error) {
	return f.syncTimes(), nil
}

func (f *fake) StopAllVms(context.Context, policy.Subject) error { return nil }

func (f *fake) ListVms(context.Context, policy.Subject, *pb.ListVmsRequest) (*pb.ListVmsResponse, error) {
	return f.listVms(), nil
}

func (f *fake) GetVmInfo(context.Context, policy.Subject, *pb.GetVmInfoRequest) (*pb.GetVmInfoResponse, error) {
	return f.info(), nil
}

func (f *fake) GetState(context.Context, policy.Subject) (dbus.State, error) { return f.state, nil }

func (f *fake) ListOperations(context.Context, policy.Subject) ([]map[string]any, error) {
	return f.state.Operations, nil
}

// serve puts the fake on a bus until stop is called or the test ends.
func (f *fake) serve(t *testing.T, bus *dbustest.Bus, o dbus.Options) (s *dbus.Server, stop func()) {
	t.Helper()
	return serve(t, bus, dbus.ConciergeService(f), dbus.Concierge1Interface(f), o, func(*dbus.Server) {})
}

// serve puts a service on a bus until stop is called or the test ends.
func serve(t *testing.T, bus *dbustest.Bus, table dbus.Service, own dbus.OwnInterface, o dbus.Options, made func(*dbus.Server)) (s *dbus.Server, stop func()) {
	t.Helper()
	o.Bus = bus.Address
	s, err := dbus.New([]dbus.Service{table}, []dbus.OwnInterface{own}, o)
	if err != nil {
		t.Fatal(err)
	}
	made(s) // before anybody can call it
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// A process is vmc that runs beside the test.
type process struct {
	t         *testing.T
	out, errs *lines
	interrupt func()
	code      chan int
}

// begin runs vmc; what it runs on ends with the test.
func begin(t *testing.T, args ...string) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, out: newLines(t), errs: newLines(t), interrupt: cancel, code: make(chan int, 1)}
	go func() {
		code := Main(ctx, args, nil, p.out.w, p.errs.w)
		p.out.w.Close()
		p.errs.w.Close()
		p.code <- code
	}()
	t.Cleanup(func() {
		cancel()
		p.out.r.Close()
		p.errs.r.Close()
		<-p.out.done
		<-p.errs.done
	})
	return p
}

// ends waits for the end of the program, with a code.
func (p *process) ends(want int) {
	p.t.Helper()
	select {
	case code := <-p.code:
		if code != want {
			p.t.Fatalf("exit code %d, want %d", code, want)
		}
	case <-time.After(patience):
		p.t.Fatal("vmc does not end")
	}
}

// lines are those that a program writes.
type lines struct {
	t    *testing.T
	r    *os.File
	w    *os.File
	ch   chan string
	done chan struct{}
}

func newLines(t *testing.T) *lines {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := &lines{t: t, r: r, w: w, ch: make(chan string, 10000), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer close(l.ch)
		s := bufio.NewReader(r)
		for {
			line, err := s.ReadString('\n')
			if line != "" {
				l.ch <- line
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					l.ch <- err.Error()
				}
				return
			}
		}
	}()
	return l
}

// next waits for a line that says all of something.
func (l *lines) next(says ...string) string {
	l.t.Helper()
	select {
	case line, ok := <-l.ch:
		if !ok {
			l.t.Fatalf("the program has ended; want a line with %q", says)
		}
		if missing := slices.IndexFunc(says, func(s string) bool { return !strings.Contains(line, s) }); missing >= 0 {
			l.t.Fatalf("the line %q does not say %q", line, says[missing])
		}
		return line
	case <-time.After(patience):
		l.t.Fatalf("no line came; want one with %q", says)
	}
	return ""
}
