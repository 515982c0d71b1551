package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

func errorName(err error) string {
	var e godbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	return ""
}

const (
	invalidArgs  = "org.freedesktop.DBus.Error.InvalidArgs"
	accessDenied = "org.freedesktop.DBus.Error.AccessDenied"
)

func TestRequestsThatAreNone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	for _, m := range dbus.ConciergeService(nil).Methods {
		for what, args := range map[string][]any{
			"bytes that are no message": {[]byte{0xff, 0xff, 0xff, 0xff, 0x01}},
			"a truncated message":       {[]byte{0x0a, 0x7f, 'x'}},
			"a string":                  {"termina"},
			"a number":                  {uint32(7)},
			"nothing":                   {},
			"one argument too many":     {[]byte{}, "x"},
		} {
			if m.Request == nil && len(args) == 0 {
				continue // as it should be
			}
			err := alice.object().Call(dbus.ConciergeInterface+"."+m.Name, 0, args...).Err
			if errorName(err) != invalidArgs {
				t.Errorf("%s with %s: %v, want InvalidArgs", m.Name, what, err)
			}
		}
	}
	ear.silent(alice)
	b.gone()
}

func TestUnknownVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()

	var stop pb.SuccessFailureResponse
	if alice.must("StopVm", &pb.StopVmRequest{Name: "nobody"}, &stop); !stop.Success {
		t.Errorf("StopVm of an unknown VM: %v", &stop)
	}
	var info pb.GetVmInfoResponse
	if alice.must("GetVmInfo", &pb.GetVmInfoRequest{Name: "nobody"}, &info); info.Success {
		t.Errorf("GetVmInfo of an unknown VM: %v", &info)
	}
	var destroy pb.DestroyDiskImageResponse
	alice.must("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: "nobody"}, &destroy)
	if destroy.Status != pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST || destroy.FailureReason == "" {
		t.Errorf("DestroyDiskImage of an unknown VM: %v", &destroy)
	}
	err := alice.own("ConnectVsock", "nobody", "", uint32(9001)).Err
	if errorName(err) != dbus.ErrorNotFound {
		t.Errorf("ConnectVsock to an unknown VM: %v", err)
	}
	ear.silent(alice)
}

// Every method that takes a VM's name refuses the same names, with a reason.
func TestNames(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	for what, name := range map[string]string{
		"empty": "", "a slash": "a/b", "dots": "..", "a dot": ".", "NUL": "a\x00b", "a newline": "a\nb", "61 bytes": strings.Repeat("x", 61),
	} {
		t.Run(what, func(t *testing.T) {
			var start pb.StartVmResponse
			alice.must("StartVm", &pb.StartVmRequest{Name: name}, &start)
			if start.Success || start.Status != pb.VmStatus_VM_STATUS_FAILURE || !strings.Contains(start.FailureReason, "name") {
				t.Errorf("StartVm: %v", &start)
			}
			var stop pb.SuccessFailureResponse
			alice.must("StopVm", &pb.StopVmRequest{Name: name}, &stop)
			if stop.Success || !strings.Contains(stop.FailureReason, "name") {
				t.Errorf("StopVm: %v", &stop)
			}
			var info pb.GetVmInfoResponse
			if alice.must("GetVmInfo", &pb.GetVmInfoRequest{Name: name}, &info); info.Success {
				t.Errorf("GetVmInfo: %v", &info)
			}
			var create pb.CreateDiskImageResponse
			alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: name, DiskSize: 1 << 30}, &create)
			if create.Status != pb.DiskImageStatus_DISK_STATUS_FAILED || !strings.Contains(create.FailureReason, "name") {
				t.Errorf("CreateDiskImage: %v", &create)
			}
			var destroy pb.DestroyDiskImageResponse
			alice.must("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: name}, &destroy)
			if destroy.Status != pb.DiskImageStatus_DISK_STATUS_FAILED || !strings.Contains(destroy.FailureReason, "name") {
				t.Errorf("DestroyDiskImage: %v", &destroy)
			}
			settings := map[string]godbus.Variant{"cpus": godbus.MakeVariant(uint32(1))}
			for member, args := range map[string][]any{"ConnectVsock": {name, "", uint32(1)}, "ConfigureVm": {name, "", settings}} {
				if strings.ContainsRune(name, 0) {
					continue // D-Bus strings cannot carry it
				}
				if err := alice.own(member, args...).Err; errorName(err) != dbus.ErrorInvalidArgument {
					t.Errorf("%s: %v", member, err)
				}
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(b.StateDir, "*", "*", "*")); len(left) > 0 {
		t.Errorf("refused requests left %v", left)
	}
	// The longest name there can be, and one that needs every byte kept.
	for _, name := range []string{strings.Repeat("x", 60), "Zürich ✓ a,b=c"} {
		var create pb.CreateDiskImageResponse
		alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: name, DiskSize: 1 << 30}, &create)
		if create.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
			t.Errorf("a disk for %q: %v", name, &create)
		}
	}
}

func TestOtherPeoplesOwnerIDs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.client(testbed.Alice), b.client(testbed.Bob)
	ear := bob.listen()
	for _, owner := range []string{"64102", "0", "4294967295", "9999999999", "12345"} {
		for method, req := range map[string]proto.Message{
			"StartVm":          &pb.StartVmRequest{Name: "x", OwnerId: owner},
			"StopVm":           &pb.StopVmRequest{Name: "x", OwnerId: owner},
			"GetVmInfo":        &pb.GetVmInfoRequest{Name: "x", OwnerId: owner},
			"ListVms":          &pb.ListVmsRequest{OwnerId: owner},
			"CreateDiskImage":  &pb.CreateDiskImageRequest{VmName: "x", CryptohomeId: owner},
			"DestroyDiskImage": &pb.DestroyDiskImageRequest{VmName: "x", CryptohomeId: owner},
			"ListVmDisks":      &pb.ListVmDisksRequest{CryptohomeId: owner},
		} {
			if err := alice.call(method, req, &pb.SuccessFailureResponse{}); errorName(err) != accessDenied {
				t.Errorf("%s for owner %s: %v, want AccessDenied", method, owner, err)
			}
		}
		for member, args := range map[string][]any{
			"ConnectVsock": {"x", owner, uint32(9001)},
			"ConfigureVm":  {"x", owner, map[string]godbus.Variant{}},
		} {
			if err := alice.own(member, args...).Err; errorName(err) != accessDenied {
				t.Errorf("%s for owner %s: %v, want AccessDenied", member, owner, err)
			}
		}
	}
	var list pb.ListVmsResponse
	alice.must("ListVms", &pb.ListVmsRequest{OwnerId: "not/a/word"}, &list)
	if list.Success || list.FailureReason == "" {
		t.Errorf("an owner that is no word: %v", &list)
	}
	ear.silent(bob)
	b.gone()
}

// What cannot be started is refused before anything runs, and nobody hears of
// it.
func TestKernelsThatCannotBeStarted(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	home := b.Home(testbed.Alice)
	write := func(name, text string, mode os.FileMode, uid uint32) string {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(uid), int(uid)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(home, "fifo")
	if err := makeFIFO(fifo, testbed.Alice); err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct{ kernel, want string }{
		"missing":        {filepath.Join(home, "nothing"), "no such file"},
		"no kernel":      {write("text", "I am no kernel", 0o600, testbed.Alice.UID), "bzImage"},
		"empty":          {write("empty", "", 0o600, testbed.Alice.UID), "bzImage"},
		"somebody's":     {write("bobs", "\x7fELF", 0o600, testbed.Bob.UID), "permission denied"},
		"the service's":  {write("services", "\x7fELF", 0o600, testbed.Service.UID), "permission denied"},
		"root's":         {"/etc/shadow", "permission denied"},
		"a directory":    {home, "not a regular file"},
		"a FIFO":         {fifo, "not a regular file"},
		"a device":       {"/dev/zero", "not a regular file"},
		"a relative one": {"vmlinux", "absolute"},
		"a magic link":   {"/proc/self/exe", "too many levels"},
	} {
		t.Run(what, func(t *testing.T) {
			var resp pb.StartVmResponse
			alice.must("StartVm", &pb.StartVmRequest{Name: "x", Vm: &pb.VirtualMachineSpec{Kernel: test.kernel}}, &resp)
			if resp.Success || resp.Status != pb.VmStatus_VM_STATUS_FAILURE || !strings.Contains(resp.FailureReason, test.want) {
				t.Errorf("%v, want a reason with %q", &resp, test.want)
			}
			if resp.FailureReason != "" && !strings.Contains(resp.FailureReason, test.kernel) && test.kernel != "" {
				t.Errorf("the reason does not name the file: %q", resp.FailureReason)
			}
		})
	}
	ear.silent(alice)
	b.gone()
}

func TestRequestsThatCannotBeMet(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	for what, test := range map[string]struct {
		req  *pb.StartVmRequest
		want string
	}{
		"no stateful disk":       {&pb.StartVmRequest{StartTermina: true}, "CreateDiskImage"},
		"too many CPUs":          {&pb.StartVmRequest{Cpus: 10_000}, "CPUs"},
		"a GPU":                  {&pb.StartVmRequest{EnableGpu: true}, "enable_gpu"},
		"eleven disks":           {&pb.StartVmRequest{Disks: make([]*pb.DiskImage, 11)}, "disks"},
		"descriptors missing":    {&pb.StartVmRequest{Fds: []pb.StartVmRequest_FdType{pb.StartVmRequest_KERNEL}}, "descriptors"},
		"a missing disk":         {&pb.StartVmRequest{Disks: []*pb.DiskImage{{Path: "/nowhere/x.img"}}}, "/nowhere/x.img"},
		"a parameter's newline":  {&pb.StartVmRequest{KernelParams: []string{"a\nb"}}, "control character"},
		"a shared writable root": {&pb.StartVmRequest{WritableRootfs: true}, "writable_rootfs"},
		"an Android VM":          {&pb.StartVmRequest{VmType: pb.VmInfo_ARC_VM}, "ARC_VM"},
	} {
		test.req.Name = "x"
		for i, d := range test.req.Disks {
			if d == nil {
				test.req.Disks[i] = &pb.DiskImage{Path: "/x"}
			}
		}
		var resp pb.StartVmResponse
		alice.must("StartVm", test.req, &resp)
		if resp.Success || resp.Status != pb.VmStatus_VM_STATUS_FAILURE || !strings.Contains(resp.FailureReason, test.want) {
			t.Errorf("%s: %v, want a reason with %q", what, &resp, test.want)
		}
	}
	ear.silent(alice)
	b.gone()
}
