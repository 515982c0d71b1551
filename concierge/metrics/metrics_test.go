package metrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type deaf struct{}

func (deaf) Emit(uint32, string, proto.Message)                        {}
func (deaf) EmitChange(uint32, string, string, uint64, map[string]any) {}

// service is a real one whose VMs end as soon as they are started.
func service(t *testing.T, m *Metrics) *concierge.Service {
	t.Helper()
	dir, err := os.MkdirTemp("", "mt") // short, because socket addresses are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image := filepath.Join(dir, "image")
	if err := os.Mkdir(image, 0o755); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range []string{"vmlinux", "initramfs.cpio", "rootfs.squashfs"} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, fmt.Sprintf(`{"name":%q,"size":%d}`, name, len(name)))
	}
	manifest := `{"files":[` + strings.Join(files, ",") + `]}`
	if err := os.WriteFile(filepath.Join(image, "manifest.json"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := concierge.New(t.Context(), concierge.Config{
		StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run"), ImageDir: image,
		Accel: vmm.AccelTCG, Vsock: vsock.ModeUser, Network: concierge.NetworkNone, Pool: concierge.DefaultPool, VMGroup: -1,
		Launcher: &vmm.Launcher{Program: "/bin/false"}, Opener: &policy.Opener{}, Events: deaf{}, Log: slog.New(slog.DiscardHandler),
		Quota: &concierge.Quota{Default: concierge.Limits{VMs: 5, Memory: concierge.Unlimited, Disk: 1 << 30, Logs: concierge.Unlimited}}, Observer: m,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var alice = policy.Subject{Caller: policy.Caller{UID: 64101}, Owner: policy.Owner{UID: 64101, Word: "64101"}}

// filled has measured a bit of everything.
func filled(t *testing.T) *Metrics {
	t.Helper()
	m := New()
	s := service(t, m)
	m.Watch(s)
	m.BusMethod("org.chromium.VmConcierge", "GetVmInfo")(time.Millisecond, "ok")
	m.BusMethod("org.chromium.VmConcierge", "GetVmInfo")(time.Second, "failed")
	m.GuestCalled(guestlink.Call{Method: "SetTime", Took: time.Millisecond, Code: "OK", Answered: true})
	if _, err := s.CreateDiskImage(t.Context(), alice, &pb.CreateDiskImageRequest{VmName: "x", DiskSize: 2 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartVm(t.Context(), alice, &pb.StartVmRequest{Name: "x"}, nil); err == nil {
		t.Fatal("a VM without a supervisor has started")
	}
	return m
}

func TestMetricsAreWellNamed(t *testing.T) {
	problems, err := testutil.GatherAndLint(filled(t).Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func scrape(t *testing.T, path, target string) (*http.Response, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}}
	resp, err := client.Get("http://auberge" + target)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// served serves metrics on a socket until the test ends.
func served(t *testing.T, m *Metrics) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metrics.sock")
	// What a service before has left is replaced.
	if l, err := Listen(path, -1); err != nil {
		t.Fatal(err)
	} else {
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	l, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Serve(ctx, l, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return path
}

func TestScrape(t *testing.T) {
	path := served(t, filled(t))
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("%v, %v", fi, err)
	}
	resp, text := scrape(t, path, "/metrics")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s\n%s", resp.Status, text)
	}
	// The start is answered before it is counted.
	for until := time.Now().Add(time.Minute); !strings.Contains(text, `auberge_operations_total{kind="start-vm"`) && time.Now().Before(until); {
		_, text = scrape(t, path, "/metrics")
	}
	for _, want := range []string{
		`auberge_dbus_calls_total{interface="org.chromium.VmConcierge",method="GetVmInfo",outcome="ok"} 1`,
		`auberge_dbus_calls_total{interface="org.chromium.VmConcierge",method="GetVmInfo",outcome="failed"} 1`,
		`auberge_dbus_call_duration_seconds_count{interface="org.chromium.VmConcierge",method="GetVmInfo"} 2`,
		`auberge_guest_calls_total{code="OK",method="SetTime"} 1`,
		`auberge_operations_total{kind="start-vm",outcome="failed"} 1`,
		`auberge_vm_start_duration_seconds_count{outcome="failed"} 1`,
		`auberge_vms{state="running"} 0`,
		`auberge_operations_in_progress{kind="resize-disk"} 0`,
		`auberge_user_disk_bytes{uid="64101"} 2.097152e+06`,
		`auberge_user_disk_limit_bytes{uid="64101"} 1.073741824e+09`,
		`auberge_user_vms_limit{uid="64101"} 5`,
		"auberge_state_free_bytes ", "auberge_host_memory_available_bytes ", "go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics do not say %s", want)
		}
	}
	if strings.Contains(text, "auberge_user_memory_limit_bytes{") {
		t.Error("a limit that is none is told")
	}
	if resp, _ := scrape(t, path, "/debug/pprof/"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("something else is served: %s", resp.Status)
	}
}

// Who floods the socket is cut off, and others are still served.
func TestScrapersAreBounded(t *testing.T) {
	path := served(t, New())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("a header of 64 KiB: %q, %v", line, err)
	}
	var idle []net.Conn
	for range maxConnections - 1 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if resp, _ := scrape(t, path, "/metrics"); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	for _, c := range idle {
		c.Close()
	}
}

func TestListenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, -1); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("in place of a file: %v", err)
	}
	path = filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", fi, err)
	}
}

// No two names become one, and no name leaves its line.
func TestWords(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"termina", "a b", "ä", "a\u200bb", "a\u200cb", `a\u200bb`, "a\"b", "\xff", "\u202e", "line\nbreak"} {
		w := word(name)
		if other, ok := seen[w]; ok {
			t.Errorf("%q and %q are both %s", name, other, w)
		}
		seen[w] = name
		if strings.ContainsAny(w, "\n\u202e\u200b") {
			t.Errorf("%q is %q", name, w)
		}
	}
}
