package concierge

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	guestpb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

// shipper is what a guest ships its logs with: it plays the guest of a VM at
// the backend's end of the host's port.
func (b *bed) shipper(s *Service, name string) guestpb.LogCollectorClient {
	b.t.Helper()
	s.mu.Lock()
	dir := s.vms[keyOf(alice.Owner, name)].dir
	s.mu.Unlock()
	c, err := grpc.NewClient("unix:"+vsock.EndpointPath(filepath.Join(dir, "vm.vsock"), vsock.PortLogCollector),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return guestpb.NewLogCollectorClient(c)
}

func said(texts ...string) *guestpb.LogRequest {
	req := &guestpb.LogRequest{}
	for _, t := range texts {
		req.Records = append(req.Records, &guestpb.LogRecord{Severity: guestpb.LogSeverity_NOTICE,
			Timestamp: &guestpb.Timestamp{Seconds: time.Now().Unix()}, Content: []byte(t)})
	}
	return req
}

var logTime = regexp.MustCompile(`(?m)^[-0-9]{10}T[:0-9]{8}\.[0-9]{6}Z `)

// logOf returns the lines of a VM's log without their times.
func (b *bed) logOf(s *Service, name string) []string {
	b.t.Helper()
	r, err := s.GetVmLogs(b.t.Context(), alice, &pb.GetVmLogsRequest{Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(logTime.ReplaceAllString(r.Log, ""), "\n"), "\n")
}

func (b *bed) open(s *Service, sub policy.Subject, name string, o LogOptions) (*os.File, error) {
	b.t.Helper()
	f, err := s.OpenVmLogs(b.t.Context(), sub, name, o)
	if err == nil {
		b.t.Cleanup(func() { f.Close() })
	}
	return f, err
}

func (b *bed) mustOpen(s *Service, name string, o LogOptions) *bufio.Scanner {
	b.t.Helper()
	f, err := b.open(s, alice, name, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return bufio.NewScanner(f)
}

// A log is the VM's: it holds what the host did and what the guest said,
// without a gap over the service's restart and the VM's, until the VM is
// destroyed.
func TestVmLog(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if _, err := s.GetVmLogs(t.Context(), alice, &pb.GetVmLogsRequest{Name: "x"}); err == nil || !strings.Contains(err.Error(), `"x"`) || errors.As(err, new(*kind)) {
		t.Errorf("a log that is not there: %v", err)
	}
	if _, err := b.open(s, alice, "x", LogOptions{Follow: true}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a log that is not there: %v", err)
	}
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	guest := b.shipper(s, "x")
	if _, err := guest.CollectKernelLogs(t.Context(), said("usb \x1b[2J\xff")); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.CollectUserLogs(t.Context(), said("a", "b")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	late := make(chan error, 1)
	go func() {
		for { // a connection that the old service has closed may be tried first
			_, err := guest.CollectUserLogs(t.Context(), said("while nobody listened"))
			if status.Code(err) != codes.Unavailable {
				late <- err
				return
			}
		}
	}()
	s = b.serve()
	if err := <-late; err != nil {
		t.Fatal(err)
	}
	if _, err := guest.CollectUserLogs(t.Context(), said("afterwards")); err != nil {
		t.Fatal(err)
	}
	f := b.mustOpen(s, "x", LogOptions{Follow: true, Lines: 1})
	b.stop(s, "x")
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"host info: the VM is starting, with the CID 32", "host info: the VM has started",
		"kernel notice: usb \ufffd[2J\ufffd", "user notice: a", "user notice: b",
		"host info: the service is back and has found the VM running",
		"user notice: while nobody listened", "user notice: afterwards",
		"host info: stopping the VM: STOP_VM_REQUESTED", "host info: the VM has ended: ",
		"host info: the VM is starting, with the CID 33", "host info: the VM has started",
	}
	same := func(got []string) bool {
		return len(got) == len(want) && !slices.ContainsFunc(got, func(l string) bool {
			return !slices.ContainsFunc(want, func(w string) bool {
				return l == w || strings.HasPrefix(w, "host info: the VM has ended") && strings.HasPrefix(l, w)
			})
		})
	}
	got := b.logOf(s, "x")
	// The two at the service's return are not ordered.
	if i := slices.Index(got, want[6]); i == 5 {
		got[5], got[6] = got[6], got[5]
	}
	if !same(got) || got[7] != want[7] || got[8] != want[8] {
		t.Errorf("the log is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, w := range want[7:] {
		if !f.Scan() || !strings.Contains(f.Text(), w) {
			t.Fatalf("followed to %q, %v; want %q", f.Text(), f.Err(), w)
		}
	}
	// Somebody else's of the same name is another log.
	if _, err := s.GetVmLogs(t.Context(), subject(64102), &pb.GetVmLogsRequest{Name: "x"}); err == nil {
		t.Error("another user has the log")
	}
	path := s.logPath(keyOf(alice.Owner, "x"))
	if want := filepath.Join(b.cfg.StateDir, "logs/64101/eA==.log"); path != want {
		t.Errorf("the log is at %s, want %s", path, want)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", fi.Mode(), err)
	}
	if _, err := s.DestroyDiskImage(t.Context(), alice, &pb.DestroyDiskImageRequest{VmName: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("after the VM was destroyed: %v", err)
	}
	for f.Scan() { // its end
	}
}

// A VM that ends by itself leaves its last words in the log.
func TestLastWords(t *testing.T) {
	t.Setenv(hypervisorEnv, "print:\x1b[31mKernel_panic")
	b := newBed(t)
	s := b.serve()
	resp, err := b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	b.awaitConsole(s, "x", "Kernel_panic")
	if err := syscall.Kill(int(resp.VmInfo.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.awaitGone(s)
	got := b.logOf(s, "x")
	if n := len(got); n < 4 || got[n-2] != "console info: Kernel_panic" || !strings.HasPrefix(got[n-1], "host error: the VM has ended: ") {
		t.Errorf("the log is %q", got)
	}
	// So does one that ended while the service was away.
	resp, err = b.small(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	v := b.awaitConsole(s, "x", "Kernel_panic")
	s.Close()
	if err := syscall.Kill(int(resp.VmInfo.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for { // nothing announces it to anybody but a service
		if _, err := os.Stat(filepath.Join(v.dir, "exit.json")); err == nil {
			break
		}
		runtime.Gosched()
	}
	s = b.serve()
	b.awaitGone(s)
	got = b.logOf(s, "x")
	if n := len(got); got[n-2] != "console info: Kernel_panic" || !strings.HasPrefix(got[n-1], "host error: the VM has ended: ") {
		t.Errorf("the log is %q", got)
	}
	// One that does not start leaves the reason.
	t.Setenv(guestEnv, "refuses")
	if _, err := b.small(s, "x"); err == nil {
		t.Fatal("it started")
	}
	got = b.logOf(s, "x")
	if !slices.ContainsFunc(got, func(l string) bool {
		return strings.HasPrefix(l, "host error: the VM did not start: configure the guest's network: the guest says: there is no such interface")
	}) || got[len(got)-1] != "host info: the VM has ended: the start was given up" {
		t.Errorf("the log is %q", got)
	}
}

// awaitConsole waits until a VM has printed a word. Nothing announces it.
func (b *bed) awaitConsole(s *Service, name, word string) *vm {
	b.t.Helper()
	s.mu.Lock()
	v := s.vms[keyOf(alice.Owner, name)]
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(b.t.Context(), patienceOfTests)
	defer cancel()
	for {
		console, err := v.machine.Console(ctx)
		if err != nil {
			b.t.Fatal(err)
		}
		if strings.Contains(string(console), word) {
			return v
		}
	}
}

// A log that cannot be written is no VM's trouble.
func TestLogThatCannotBeWritten(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	if err := os.WriteFile(filepath.Join(b.cfg.StateDir, "logs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	guest := b.shipper(s, "x")
	if _, err := guest.CollectUserLogs(t.Context(), said("lost")); err != nil {
		t.Errorf("the guest was refused: %v", err)
	}
	if _, err := s.GetVmLogs(t.Context(), alice, &pb.GetVmLogsRequest{Name: "x"}); err == nil {
		t.Error("there is a log")
	}
	if err := os.Remove(filepath.Join(b.cfg.StateDir, "logs")); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.CollectUserLogs(t.Context(), said("kept")); err != nil {
		t.Fatal(err)
	}
	got := b.logOf(s, "x")
	if len(got) != 2 || !strings.HasPrefix(got[0], "host warning: 3 records are lost, they could not be written: ") || got[1] != "user notice: kept" {
		t.Errorf("the log is %q", got)
	}
	b.stop(s, "x")
	b.gone()
}
