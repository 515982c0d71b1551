package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// A configuration file as an administrator would write it: its limits hold for
// whom they name, and the refusal says which and where. What everybody has is
// an administrator's to see, and nobody else's.
func TestQuotaAndAdministrator(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	conf := filepath.Join(b.Dir, "auberge.conf")
	text := fmt.Sprintf("log-level = debug\n\n[vm_concierge]\nmax-disk = 100M\nquota = %d:vms=1,memory=600M\nquota = %s:disk=30M\n\n[auberge-helper]\n",
		testbed.Alice.UID, strconv.Itoa(int(testbed.Bob.UID)))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	b.restartConcierge("--config", conf)
	alice, bob, root := b.client(testbed.Alice), b.client(testbed.Bob), b.client(testbed.Root)
	refused := func(reason string, says ...string) {
		t.Helper()
		for _, s := range append(says, "administrator", conf) {
			if !strings.Contains(reason, s) {
				t.Errorf("the refusal %q does not say %q", reason, s)
			}
		}
	}

	var disk pb.CreateDiskImageResponse
	bob.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "b", DiskSize: 64 << 20}, &disk)
	if disk.Status != pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE {
		t.Errorf("%v", &disk)
	}
	refused(disk.FailureReason, "max-disk", "64 MiB", "30 MiB")
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "a", DiskSize: 64 << 20}, &disk)
	if disk.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
		t.Fatalf("%v", &disk)
	}

	alice.start(&pb.StartVmRequest{Name: "first"})
	alice.small("second")
	var start pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "second"}, &start)
	if start.Success {
		t.Error("a second VM runs where one may")
	}
	refused(start.FailureReason, "max-vms", "1 of at most 1")
	// The next service counts the VMs that it finds.
	b.restartConcierge("--config", conf)
	alice.must("StartVm", &pb.StartVmRequest{Name: "second"}, &start)
	refused(start.FailureReason, "max-vms")

	out, errs, err := root.run("vmc", "list", "--all-users")
	if err != nil || !regexp.MustCompile(`(?m)^`+strconv.Itoa(int(testbed.Alice.UID))+` .*first .*running`).MatchString(out) {
		t.Errorf("vmc list --all-users: %v\n%s%s", err, out, errs)
	}
	var usage struct{ Users []map[string]any }
	out, errs, err = root.run("vmc", "disk", "usage", "--all-users", "--json")
	if err != nil || json.Unmarshal([]byte(out), &usage) != nil || len(usage.Users) == 0 || usage.Users[0]["uid"] != float64(testbed.Alice.UID) ||
		usage.Users[0]["disk"] != float64(64<<20) || usage.Users[0]["max_disk"] != float64(100<<20) || usage.Users[0]["logs"] == float64(0) {
		t.Errorf("vmc disk usage --all-users: %v\n%s%s", err, out, errs)
	}
	for _, args := range [][]string{{"list", "--all-users"}, {"disk", "usage", "--all-users"}} {
		if out, errs, err := bob.run("vmc", args...); exitCode(err) != 4 || strings.Contains(out+errs, "first") {
			t.Errorf("bob: vmc %v: %v\n%s%s", args, err, out, errs)
		}
	}
	out, errs, err = alice.run("vmc", "quota")
	if err != nil || !regexp.MustCompile(`running VMs +1 +1\n`).MatchString(out) || !strings.Contains(out, "100 MiB") || !strings.Contains(out, "600 MiB") {
		t.Errorf("vmc quota: %v\n%s%s", err, out, errs)
	}
	out, errs, err = bob.run("vmc", "disk", "usage")
	if err != nil || !strings.Contains(out, "30 MiB") || strings.Contains(out, "64 MiB") {
		t.Errorf("vmc disk usage: %v\n%s%s", err, out, errs)
	}
	alice.stop("first")
	b.gone()
}

// A scrape finds the VMs, what they take and how long calls took; only who may
// open the socket gets it.
func TestMetrics(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	socket := filepath.Join(b.RuntimeDir, "metrics.sock")
	b.restartConcierge("--metrics", socket)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	text := scrape(t, socket)
	vm := fmt.Sprintf(`{label="",uid="%d",vm="x"} `, testbed.Alice.UID)
	for _, want := range []string{
		`auberge_vms{state="running"} 1`, `auberge_vm_memory_bytes` + vm + `5.36870912e+08`, `auberge_vm_cpu_seconds_total` + vm,
		`auberge_vm_resident_bytes` + vm, `auberge_vm_agent_silent` + vm + `0`, `auberge_vm_agent_answered_timestamp_seconds` + vm,
		`auberge_vm_start_duration_seconds_count{outcome="done"} 1`, `auberge_guest_calls_total{code="OK",method="SetTime"} 1`,
		`auberge_dbus_calls_total{interface="org.chromium.VmConcierge",method="StartVm",outcome="ok"} 1`,
		`auberge_operations_total{kind="start-vm",outcome="done"} 1`,
		fmt.Sprintf(`auberge_user_vms{uid="%d"} 1`, testbed.Alice.UID), `auberge_state_free_bytes `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	if cpu := value(t, text, "auberge_vm_cpu_seconds_total"+vm); cpu < 0.1 {
		t.Errorf("the VM has taken %v s of CPU time to boot", cpu)
	}
	if resident := value(t, text, "auberge_vm_resident_bytes"+vm); resident < 32<<20 || resident > 1<<30 {
		t.Errorf("the VM takes %v bytes", resident)
	}
	// Everybody's VMs are in there.
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	alice.stop("x")
	b.gone()
	if text := scrape(t, socket); strings.Contains(text, `vm="x"`) || !strings.Contains(text, `auberge_vms{state="running"} 0`) {
		t.Error("a VM that has gone has metrics")
	}
}

func value(t *testing.T, text, metric string) float64 {
	t.Helper()
	_, rest, _ := strings.Cut(text, "\n"+metric)
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(line, 64)
	if err != nil {
		t.Fatalf("%s: %v", metric, err)
	}
	return n
}

func scrape(t *testing.T, socket string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	resp, err := client.Get("http://auberge/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", resp.Status, err, text)
	}
	return string(text)
}

// The doctor finds nothing broken where VMs run, whoever asks, and says what is
// when the service has gone.
func TestDoctor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	type finding struct{ Name, Outcome, Detail, Remedy string }
	doctor := func(c *client) (int, map[string]finding) {
		t.Helper()
		out, errs, err := c.run("vmc", "doctor", "--json")
		var report struct {
			OK     bool
			Checks []finding
		}
		if jerr := json.Unmarshal([]byte(out), &report); jerr != nil {
			t.Fatalf("%v, %v\n%s%s", err, jerr, out, errs)
		}
		all := map[string]finding{}
		for _, f := range report.Checks {
			all[f.Name] = f
			if f.Outcome == "fail" && report.OK {
				t.Errorf("%+v, and all is well", f)
			}
		}
		return exitCode(err), all
	}
	for _, u := range []testbed.User{testbed.Alice, testbed.Root} {
		code, all := doctor(b.client(u))
		if code != 0 {
			t.Errorf("%s: exit code %d: %v", u.Name, code, all)
		}
		for _, name := range []string{"service", "rights", "qemu", "image", "vsock", "vsock exposure"} {
			if f := all[name]; f.Outcome != "ok" {
				t.Errorf("%s: %+v", u.Name, f)
			}
		}
	}
	out, errs, err := b.client(testbed.Alice).run("vmc", "doctor")
	if err != nil || !regexp.MustCompile(`(?m)^OK +service +vm_concierge answers$`).MatchString(out) {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
	if err := b.concierge.Stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	code, all := doctor(b.client(testbed.Alice))
	if f := all["service"]; code != 1 || f.Outcome != "fail" || !strings.Contains(f.Remedy, "vm-concierge.service") {
		t.Errorf("without the service: exit code %d, %+v", code, f)
	}
}
