package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// logs returns the log of one of the user's VMs.
func (c *client) logs(vm string) string {
	c.t.Helper()
	var resp pb.GetVmLogsResponse
	c.must("GetVmLogs", &pb.GetVmLogsRequest{Name: vm}, &resp)
	return resp.Log
}

// openLogs opens the log of one of the user's VMs.
func (c *client) openLogs(vm string, options map[string]godbus.Variant) *bufio.Scanner {
	c.t.Helper()
	var fd godbus.UnixFD
	if err := c.own("OpenVmLogs", vm, "", options).Store(&fd); err != nil {
		c.t.Fatal(err)
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		c.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "log")
	c.t.Cleanup(func() { f.Close() })
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil { // lines that never come
		c.t.Fatal(err)
	}
	return bufio.NewScanner(f)
}

// scanTo reads lines until one ends with a text.
func scanTo(t *testing.T, sc *bufio.Scanner, end string) {
	t.Helper()
	for sc.Scan() {
		if strings.HasSuffix(sc.Text(), end) {
			return
		}
	}
	t.Fatalf("the log ended before %q: %v", end, sc.Err())
}

// collector is the log collector of the bed's only VM as its guest reaches it:
// what is sent there has come out of the guest.
func (b *bed) collector() vmtoolspb.LogCollectorClient {
	b.t.Helper()
	paths, err := filepath.Glob(filepath.Join(b.RuntimeDir, "vms/*/vm.vsock_9999"))
	if err != nil || len(paths) != 1 {
		b.t.Fatalf("endpoints %v, %v; want one", paths, err)
	}
	c, err := grpc.NewClient("unix:"+paths[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return vmtoolspb.NewLogCollectorClient(c)
}

func record(text string) *vmtoolspb.LogRequest {
	return &vmtoolspb.LogRequest{Records: []*vmtoolspb.LogRecord{{Severity: vmtoolspb.LogSeverity_NOTICE,
		Timestamp: &vmtoolspb.Timestamp{Seconds: 1795000000}, Content: []byte(text)}}}
}

// What comes out of a guest is in its owner's log and in nobody else's,
// scrubbed, and nothing is lost while the service is away.
func TestLogs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob, root := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Root)
	if err := alice.call("GetVmLogs", &pb.GetVmLogsRequest{Name: "x"}, &pb.GetVmLogsResponse{}); errorName(err) != "org.freedesktop.DBus.Error.Failed" || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("a log that is not there: %v", err)
	}
	if err := alice.own("OpenVmLogs", "x", "", map[string]godbus.Variant{}).Err; errorName(err) != dbus.ErrorNotFound {
		t.Errorf("a log that is not there: %v", err)
	}
	alice.start(&pb.StartVmRequest{Name: "x"})
	guest := b.collector()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := guest.CollectKernelLogs(ctx, record("oops: \x1b[31m\xff\xfe\x00\u202eend")); err != nil {
		t.Fatal(err)
	}
	log := alice.logs("x")
	for _, want := range []string{
		"host info: the VM is starting", "host info: the VM has started",
		"2026-11-18T11:06:40.000000Z kernel notice: oops: \ufffd[31m\ufffd\ufffd\ufffd\ufffdend\n",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("there is no %q in the log:\n%s", want, log)
		}
	}
	if !utf8.ValidString(log) {
		t.Error("the log is no UTF-8")
	}

	// Whose it is.
	for what, err := range map[string]error{
		"GetVmLogs":  bob.call("GetVmLogs", &pb.GetVmLogsRequest{Name: "x", OwnerId: "64101"}, &pb.GetVmLogsResponse{}),
		"OpenVmLogs": bob.own("OpenVmLogs", "x", "64101", map[string]godbus.Variant{}).Err,
	} {
		if errorName(err) != accessDenied {
			t.Errorf("bob reads alice's log: %s: %v", what, err)
		}
	}
	if err := bob.call("GetVmLogs", &pb.GetVmLogsRequest{Name: "x"}, &pb.GetVmLogsResponse{}); err == nil {
		t.Error("bob has a log of that name")
	}
	if err := root.call("GetVmLogs", &pb.GetVmLogsRequest{Name: "x", OwnerId: "64101"}, &pb.GetVmLogsResponse{}); err != nil {
		t.Errorf("the administrator: %v", err)
	}
	for _, u := range []testbed.User{testbed.Bob, testbed.Alice, testbed.VMs} {
		if out, _, err := output(b.Command(u, "/bin/sh", "-c", "cat "+b.StateDir+"/logs/64101/*")); err == nil || out != "" {
			t.Errorf("%s reads the files: %q", u.Name, out)
		}
	}

	// While the service is away, calls wait for the next one.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		b.concierge.Stop(sig)
		sent := make(chan error, 1)
		go func() {
			for {
				_, err := guest.CollectUserLogs(ctx, record("sent after "+sig.String()))
				if status.Code(err) != codes.Unavailable {
					sent <- err
					return
				}
			}
		}()
		b.startConcierge()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	log = alice.logs("x")
	for _, want := range []string{"kernel notice: oops", "user notice: sent after terminated\n", "user notice: sent after killed\n"} {
		if strings.Count(log, want) != 1 {
			t.Errorf("there is not one %q in the log:\n%s", want, log)
		}
	}

	// Whoever follows goes on with the next VM of that name.
	sc := alice.openLogs("x", map[string]godbus.Variant{"follow": godbus.MakeVariant(true), "lines": godbus.MakeVariant(uint32(1))})
	alice.stop("x")
	scanTo(t, sc, "stopping the VM: STOP_VM_REQUESTED")
	alice.start(&pb.StartVmRequest{Name: "x"})
	scanTo(t, sc, "the VM has started")
	if _, err := b.collector().CollectUserLogs(ctx, record("followed")); err != nil {
		t.Fatal(err)
	}
	scanTo(t, sc, "user notice: followed")

	// One that dies leaves its last words.
	alice.run("vsh", "--user", "root", "x", "--", "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
	scanTo(t, sc, "Kernel panic - not syncing: sysrq triggered crash")
	if !strings.Contains(sc.Text(), " console info: ") {
		t.Errorf("the panic came as %q", sc.Text())
	}
	for sc.Scan() && !strings.Contains(sc.Text(), "host info: the VM has ended: ") {
	}
	alice.must("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: "x"}, &pb.DestroyDiskImageResponse{})
	for sc.Scan() { // until the log is gone
	}
	if entries, err := os.ReadDir(filepath.Join(b.StateDir, "logs/64101")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A guest that floods its log is slowed down and then refused; the log stays
// within its bounds, and others notice nothing.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "flood"})
	var batch vmtoolspb.LogRequest
	for range 200 {
		batch.Records = append(batch.Records, record(strings.Repeat("flood ", 170)).Records...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	answers := map[codes.Code]int{}
	var wg sync.WaitGroup
	guest := b.collector()
	for _, guest := range []vmtoolspb.LogCollectorClient{guest, b.collector(), b.collector()} {
		for range 2 {
			wg.Go(func() {
				for range 5 {
					_, err := guest.CollectUserLogs(ctx, &batch)
					mu.Lock()
					answers[status.Code(err)]++
					mu.Unlock()
				}
			})
		}
	}
	// Meanwhile the service serves, and the guest's own agent.
	alice.start(&pb.StartVmRequest{Name: "calm"})
	if got := alice.vsh("flood", "echo", "still", "there"); got != "still there" {
		t.Errorf("during the flood: %q", got)
	}
	alice.stop("calm")
	wg.Wait()
	if answers[codes.OK] == 0 || answers[codes.ResourceExhausted] == 0 || len(answers) > 2 {
		t.Errorf("the answers were %v", answers)
	}
	if _, err := guest.CollectUserLogs(ctx, record("the end")); err != nil {
		t.Fatal(err)
	}
	log := alice.logs("flood")
	first, _, _ := strings.Cut(log, "\n")
	if len(log) > 2<<20 || !strings.Contains(first, "left out here; OpenVmLogs gives all of them") || !strings.Contains(log, "user notice: the end\n") ||
		!strings.Contains(log, "records were refused: the guest logs too much at once") {
		t.Errorf("%d bytes, %q ... %q", len(log), first, log[max(0, len(log)-500):])
	}
	var total int64
	sc := alice.openLogs("flood", map[string]godbus.Variant{})
	for sc.Scan() {
		total += int64(len(sc.Text())) + 1
	}
	var left, all int64
	if _, err := fmt.Sscanf(first[strings.Index(first, "the first"):], "the first %d of %d bytes", &left, &all); err != nil || total < all || left >= all || total > 30<<20 {
		t.Errorf("all is %d bytes, and a moment before: %q", total, first)
	}
	alice.stop("flood")
	b.gone()
}

// A full disk costs lines of the log, which are counted, and nothing else.
func TestLogDiskFull(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	dir := filepath.Join(b.StateDir, "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=64k,mode=0700,uid=%d", testbed.Service.UID)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	// The guest itself says nothing meanwhile.
	alice.ok("SuspendVm", &pb.SuspendVmRequest{Name: "x"})
	guest := b.collector()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const sent = 200
	for i := range sent {
		if _, err := guest.CollectUserLogs(ctx, record(fmt.Sprintf("%03d %s", i, strings.Repeat("x", 900)))); err != nil {
			t.Fatal(err)
		}
	}
	log := alice.logs("x")
	kept := strings.Count(log, "xxx\n")
	if kept == 0 || kept >= sent || !strings.HasSuffix(log, "xxx\n") {
		t.Errorf("%d of %d lines were kept, the last is %q", kept, sent, log[strings.LastIndex(strings.TrimSuffix(log, "\n"), "\n")+1:])
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.CollectUserLogs(ctx, record("room again")); err != nil {
		t.Fatal(err)
	}
	log = alice.logs("x")
	want := fmt.Sprintf("host warning: %d records are lost, they could not be written: ", sent-kept)
	if !strings.Contains(log, want) || !strings.Contains(log, "no space left on device") || !strings.HasSuffix(log, "user notice: room again\n") {
		t.Errorf("there is no %q at the end of the log: %q", want, log[max(0, len(log)-500):])
	}
	alice.stop("x")
	b.gone()
}
