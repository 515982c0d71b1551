package vmc

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// Every command says what it does, and those with arguments how.
func TestEveryCommandIsDescribed(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: a short description without a period is wanted, not %q", c.CommandPath(), c.Short)
		}
		if strings.Contains(c.Use, " ") && c.Long+c.Example == "" {
			t.Errorf("%s takes arguments and has neither a description nor an example", c.CommandPath())
		}
		if c.HasParent() && c.Runnable() && c.ValidArgsFunction == nil && c.Parent().Name() != "completion" && c.Name() != "completion" {
			t.Errorf("%s completes file names where it takes none", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(Command())
}

func TestSuggestion(t *testing.T) {
	names := []string{"web1", "list", "start", "stop", "termina", "GetVmInfo"}
	for word, want := range map[string]string{
		"lits": "list", "termnia": "termina", "term": "termina", "getvminfo": "GetVmInfo", "GetVmInf": "GetVmInfo", "strat": "start",
		"": "", "x": "", "zzzzzz": "", "li": "", "list": "", "web2": "", "wbe1": "web1",
	} {
		got := suggestion(word, names)
		if want == "" && got != "" || want != "" && got != "; did you mean "+want+"?" {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestParseDisk(t *testing.T) {
	raw, qcow2 := pb.DiskImageType_DISK_IMAGE_RAW, pb.DiskImageType_DISK_IMAGE_QCOW2
	for spec, want := range map[string]*pb.DiskImage{
		"/d":                            {Path: "/d", ImageType: raw},
		"/d,writable":                   {Path: "/d", Writable: true},
		"/d.qcow2":                      {Path: "/d.qcow2", ImageType: qcow2},
		"/d.qcow2,type=raw":             {Path: "/d.qcow2", ImageType: raw},
		"/d,type=qcow2,writable":        {Path: "/d", ImageType: qcow2, Writable: true},
		"/a,,b,writable":                {Path: "/a,b", Writable: true},
		"/d,mount=/mnt/x,fstype=ext4":   {Path: "/d", MountPoint: "/mnt/x", DoMount: true, Fstype: "ext4"},
		"/d,fstype=xfs,mount=/m,data=a": {Path: "/d", MountPoint: "/m", DoMount: true, Fstype: "xfs", Data: "a"},
	} {
		got, err := parseDisk(spec)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
		} else if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", spec, diff)
		}
	}
	for spec, says := range map[string]string{
		"":                      "path",
		",writable":             "path",
		"/d,writeable":          "did you mean writable?",
		"/d,writable=yes":       "no value",
		"/d,type=vmdk":          "raw or qcow2",
		"/d,mount=mnt,fstype=x": "absolute",
		"/d,mount=/mnt":         "fstype=ext4",
		"/d,fstype=ext4":        "mount=/DIR",
		"/d,mount=,fstype=ext4": "has no value",
		"/d,":                   "no option",
	} {
		if got, err := parseDisk(spec); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v; want an error with %q", spec, got, err, says)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a,=]{1,4}`), 1, 4).Draw(t, "parts")
		// An option that begins with a comma cannot be told from a path's.
		for i := range parts {
			parts[i] = "x" + parts[i]
		}
		var escaped []string
		for _, p := range parts {
			escaped = append(escaped, strings.ReplaceAll(p, ",", ",,"))
		}
		if diff := cmp.Diff(parts, splitCommas(strings.Join(escaped, ","))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStartRequest(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	kernel, initrd, rootfs := path("kernel"), path("initrd"), path("rootfs")
	a := &app{}
	req, files, err := a.startRequest(&startOptions{kernel: kernel, initrd: initrd, rootfs: rootfs, writableRootfs: true,
		params: []string{"quiet"}, oem: []string{"a=b"}, cpus: 2, timeout: 9, vmType: "baguette",
		disks: []string{"/d,writable"}, extraDisks: []string{"/e"}})
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.StartVmRequest{
		Fds:          []pb.StartVmRequest_FdType{pb.StartVmRequest_KERNEL, pb.StartVmRequest_INITRD, pb.StartVmRequest_ROOTFS},
		KernelParams: []string{"quiet"}, OemStrings: []string{"a=b"}, Cpus: 2, Timeout: 9, WritableRootfs: true,
		VmType: pb.VmInfo_BAGUETTE,
		Disks:  []*pb.DiskImage{{Path: "/e", Writable: true}, {Path: "/d", Writable: true}},
	}
	if diff := cmp.Diff(want, req, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for i, f := range files {
		b := make([]byte, 100)
		n, _ := f.Read(b)
		if string(b[:n]) != []string{"kernel", "initrd", "rootfs"}[i] {
			t.Errorf("descriptor %d is %q", i, b[:n])
		}
		// Only what the VM may write to is opened for that.
		if _, err := f.Write([]byte("x")); (err == nil) != (i == 2) {
			t.Errorf("writing to descriptor %d: %v", i, err)
		}
		f.Close()
	}
	for says, o := range map[string]*startOptions{
		"no --vm-type":   {vmType: "windows"},
		"--disk /d,nope": {disks: []string{"/d,nope"}},
		"the rootfs":     {rootfs: filepath.Join(dir, "none")},
	} {
		_, files, err := a.startRequest(o)
		if err == nil || !strings.Contains(err.Error(), says) || len(files) > 0 {
			t.Errorf("%v, %v; want an error with %q", files, err, says)
		}
	}
}

// A finder finds exactly what strings.Index does.
func TestFinder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.SliceOf(rapid.SampledFrom([]string{"a", "b"}))
		text := letters.Draw(t, "text")
		want := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 1, 6).Draw(t, "want")
		after := rapid.IntRange(0, 8).Draw(t, "after")
		f := newFinder(want, after)
		for i, line := range text {
			sofar := strings.Join(text[:i+1], "")
			expect := strings.HasSuffix(sofar, strings.Join(want, "")) && i+1 >= after
			if got := f.feed(line); got != expect {
				t.Fatalf("%q after %q: %v", want, sofar, got)
			}
		}
	})
}

// What a service says that has trouble.
func TestTrouble(t *testing.T) {
	bus := dbustest.Lax(t)
	f := &fake{
		syncTimes: func() *pb.SyncVmTimesResponse {
			return &pb.SyncVmTimesResponse{Requests: 3, Failures: 1, FailureReason: []string{"VM \"x\": \x1b[2Jno answer"}}
		},
		listVms: func() *pb.ListVmsResponse {
			return &pb.ListVmsResponse{Success: true, Vms: []*pb.ExtendedVmInfo{{Name: "stuck", OwnerId: "7", Status: pb.VmStatus_VM_STATUS_RUNNING}}}
		},
		state: dbus.State{Instance: "run-1", Sequence: 9,
			VMs:        []map[string]any{{"name": "stuck", "owner_id": "7", "status": "stopping", "memory": uint64(512 << 20), "started": uint64(1e15)}},
			Operations: []map[string]any{{"id": "op-1", "kind": "stop-vm", "name": "stuck", "status": "running", "phase": "waiting", "progress": uint32(40)}}},
	}
	f.serve(t, bus, dbus.Options{})
	for _, test := range []struct {
		args     []string
		code     int
		out, err []string
	}{
		{[]string{"time-sync"}, 1, []string{"3 asked, 1 failed"}, []string{`VM "x": ?[2Jno answer`}},
		{[]string{"time-sync", "--json"}, 1, []string{`"failures": 1`}, nil},
		{[]string{"stop", "--all"}, 1, nil, []string{"stuck is running", "1 of your VMs"}},
		{[]string{"stop", "--all", "--json"}, 1, []string{`"stuck"`}, nil},
		{[]string{"stop", "--all", "x"}, 2, nil, nil},
		{[]string{"list"}, 0, []string{"stuck", "stopping"}, nil},
		{[]string{"list", "--json"}, 0, []string{"VM_STATUS_RUNNING"}, nil},
		{[]string{"state"}, 0, []string{"run-1", "sequence number 9", "512 MiB", "op-1", "running (waiting)", "40 %"}, nil},
		{[]string{"state", "--json"}, 0, []string{`"sequence": 9`, `"progress": 40`, `"memory": 536870912`}, nil},
		{[]string{"operations", "--json"}, 0, []string{`"operations": [`, `"phase": "waiting"`}, nil},
	} {
		out, errs, code := vmc(t, "", append(test.args, "--bus", bus.Address)...)
		if code != test.code {
			t.Errorf("vmc %q: exit code %d, want %d: %s%s", test.args, code, test.code, out, errs)
		}
		for _, want := range test.out {
			if !strings.Contains(out, want) {
				t.Errorf("vmc %q printed %q, which has no %q", test.args, out, want)
			}
		}
		for _, want := range test.err {
			if !strings.Contains(errs, want) {
				t.Errorf("vmc %q complained %q, which has no %q", test.args, errs, want)
			}
		}
	}
}

// Resizing is over when the operation is, and well only when it says so.
func TestResizeWaits(t *testing.T) {
	bus := dbustest.Lax(t)
	f := &fake{progress: make(chan *pb.DiskImageStatusResponse, 4)}
	f.serve(t, bus, dbus.Options{})
	answer := func(status pb.DiskImageStatus, reason string) {
		f.progress <- &pb.DiskImageStatusResponse{Status: status, FailureReason: reason}
	}
	answer(pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS, "")
	answer(pb.DiskImageStatus_DISK_STATUS_RESIZED, "")
	out, errs, code := vmc(t, "", "resize", "x", "1G", "--json", "--bus", bus.Address)
	if code != 0 || !strings.Contains(out, `"command_uuid": "x"`) || len(f.progress) > 0 {
		t.Errorf("%d, %s%s; %d answers left", code, out, errs, len(f.progress))
	}
	answer(pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS, "")
	answer(pb.DiskImageStatus_DISK_STATUS_FAILED, "the guest said:\n\x1b[2Jit does not fit")
	if _, errs, code := vmc(t, "", "resize", "x", "1G", "--bus", bus.Address); code != 1 || !strings.Contains(errs, "said:\n?[2Jit does not fit") {
		t.Errorf("%d, %s", code, errs)
	}
}

// Somebody who presses TAB does not wait for a bus that says nothing.
func TestCompletionGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute")
	l, err := net.Listen("unix", path) // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, errs, code := vmc(t, "", "__complete", "--bus", path, "start", "")
	if code != 0 || out != ":4\n" || strings.Contains(errs, path) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}
