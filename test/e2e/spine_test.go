package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// vsh runs a command in a VM and returns what it printed.
func (c *client) vsh(vm string, command ...string) string {
	c.t.Helper()
	out, errs, err := c.run("vsh", append([]string{vm, "--"}, command...)...)
	if err != nil {
		c.t.Fatalf("vsh %s -- %v: %v: %s%s", vm, command, err, out, errs)
	}
	return strings.TrimSpace(out)
}

func ipv4(n uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// The main job: a VM with containers' disk boots, is what the reply says,
// runs a shell, keeps its data over a stop, and goes.
func TestSpine(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()

	var disk pb.CreateDiskImageResponse
	alice.must("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "termina", DiskSize: 1 << 30}, &disk)
	alice.small("termina")
	request := &pb.StartVmRequest{Name: "termina", StartTermina: true,
		Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}}
	var resp pb.StartVmResponse
	alice.must("StartVm", request, &resp)
	if !resp.Success || resp.Status != terminaStatus(t) || resp.MountResult != pb.StartVmResponse_SUCCESS ||
		!resp.FreeBytesHasValue || resp.FreeBytes <= 0 || resp.FreeBytes > 1<<30 {
		t.Fatalf("StartVm: %v", &resp)
	}
	info := resp.VmInfo
	started := ear.expect("termina", "VmStartingUp", "VmStarted")
	if started.info.GetPid() != info.Pid || started.owner != "64101" {
		t.Errorf("VmStarted: %+v", started)
	}
	if info.Cid < 32 || info.VmType != pb.VmInfo_TERMINA {
		t.Errorf("info: %v", info)
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", info.Pid)); err != nil || !strings.Contains(exe, "qemu-system") {
		t.Errorf("pid %d is %s, %v", info.Pid, exe, err)
	}
	if got := alice.info("termina"); got.GetCid() != info.Cid || got.GetIpv4Address() != info.Ipv4Address {
		t.Errorf("GetVmInfo: %v, StartVm: %v", got, info)
	}

	// The guest is what was said of it.
	addr := ipv4(info.Ipv4Address)
	if !netip.MustParsePrefix("100.115.128.0/17").Contains(addr) {
		t.Errorf("address %v is not of the pool", addr)
	}
	if got := alice.vsh("termina", "ip", "-4", "-o", "addr"); !strings.Contains(got, addr.String()+"/29") {
		t.Errorf("the guest has no address %v/29: %s", addr, got)
	}
	if got := alice.vsh("termina", "ip", "route"); !strings.Contains(got, "default via "+netip.MustParseAddr(addr.String()).Prev().String()) {
		t.Errorf("routes: %s", got)
	}
	if got := alice.vsh("termina", "cat", "/etc/resolv.conf"); !strings.Contains(got, "nameserver "+addr.Next().String()) {
		t.Errorf("resolv.conf: %s", got)
	}
	if got := alice.vsh("termina", "uname", "-s"); got != "Linux" {
		t.Errorf("uname: %s", got)
	}
	if got := alice.vsh("termina", "findmnt", "-n", "-o", "FSTYPE,OPTIONS", "/mnt/stateful"); !strings.HasPrefix(got, "btrfs") || !strings.Contains(got, "user_subvol_rm_allowed") {
		t.Errorf("/mnt/stateful: %s", got)
	}
	host, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	if got := alice.vsh("termina", "uname", "-r"); got == strings.TrimSpace(string(host)) {
		t.Errorf("the guest runs the host's kernel %s", got)
	}

	// The installed root is read-only underneath: what is written to it is
	// gone with the VM, what is on the stateful disk stays.
	alice.rootShell("termina", "echo kept > /mnt/stateful/note; echo lost > /etc/note; sync")
	alice.stop("termina")
	if h := ear.expect("termina", "VmStopping", "VmStopped"); h.reason != pb.VmStopReason_STOP_VM_REQUESTED {
		t.Errorf("stopped because %v", h.reason)
	}
	b.gone()
	alice.must("StartVm", request, &resp)
	if !resp.Success {
		t.Fatal(resp.FailureReason)
	}
	if got := alice.vsh("termina", "sh", "-c", "cat /mnt/stateful/note; cat /etc/note || true"); got != "kept" {
		t.Errorf("after the second start: %q", got)
	}
	var gone pb.DestroyDiskImageResponse
	alice.must("DestroyDiskImage", &pb.DestroyDiskImageRequest{VmName: "termina"}, &gone)
	if gone.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Error(&gone)
	}
	ear.expect("termina", "VmStartingUp", "VmStarted", "VmStopping")
	if h := ear.expect("termina", "VmStopped"); h.reason != pb.VmStopReason_DESTROY_DISK_IMAGE_REQUESTED {
		t.Errorf("stopped because %v", h.reason)
	}
	b.gone()
}

func (c *client) rootShell(vm, script string) string {
	c.t.Helper()
	out, errs, err := c.run("vsh", "--user", "root", vm, "--", "sh", "-c", script)
	if err != nil {
		c.t.Fatalf("%s: %v: %s%s", script, err, out, errs)
	}
	return strings.TrimSpace(out)
}

// maitred calls the agent in a VM as its owner can, over ConnectVsock.
func (c *client) maitred(vm string) vmtoolspb.MaitredClient {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///maitred", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			var fd godbus.UnixFD
			if err := c.own("ConnectVsock", vm, "", uint32(8888)).Store(&fd); err != nil {
				return nil, err
			}
			f := os.NewFile(uintptr(fd), "stream")
			defer f.Close()
			return net.FileConn(f)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return vmtoolspb.NewMaitredClient(conn)
}

// Several VMs at once: each has a network, a CID and an agent of its own.
func TestVMsApart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	first := alice.start(&pb.StartVmRequest{Name: "a"})
	second := alice.start(&pb.StartVmRequest{Name: "a", OwnerId: "label"})
	if first.Cid == second.Cid || first.Ipv4Address == second.Ipv4Address {
		t.Errorf("%v and %v", first, second)
	}
	if a, c := ipv4(first.Ipv4Address), ipv4(second.Ipv4Address); netip.PrefixFrom(a, 29).Masked() == netip.PrefixFrom(c, 29).Masked() {
		t.Errorf("%v and %v share a /29", a, c)
	}
	var list pb.ListVmsResponse
	alice.must("ListVms", &pb.ListVmsRequest{}, &list)
	if len(list.Vms) != 2 || list.Vms[0].OwnerId != "64101" || list.Vms[1].OwnerId != "label" {
		t.Errorf("all of alice's: %v", &list)
	}
	if alice.must("ListVms", &pb.ListVmsRequest{OwnerId: "label"}, &list); len(list.Vms) != 1 {
		t.Errorf("the label's: %v", &list)
	}
	alice.stop("a")
	var resp pb.SuccessFailureResponse
	alice.must("StopVm", &pb.StopVmRequest{Name: "a", OwnerId: "label"}, &resp)
	b.gone()
}

// A guest that powers off by itself is reported; no VmStopping comes.
func TestGuestPowersOff(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	ear := alice.listen()
	alice.start(&pb.StartVmRequest{Name: "x"})
	ear.expect("x", "VmStartingUp", "VmStarted")
	alice.run("vsh", "--user", "root", "x", "--", "poweroff")
	if h := ear.expect("x", "VmStopped"); h.reason != pb.VmStopReason_VM_EXITED {
		t.Errorf("stopped because %v", h.reason)
	}
	alice.stop("x")
	b.gone()
}

// A guest that floods its console costs the host nothing, and is served on.
func TestConsoleFlood(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	// Enough to fill any buffer that has no bound, waited for by the guest.
	alice.rootShell("x", "head -c 3000000 /dev/zero | tr '\\0' x > /dev/console")
	if got := alice.vsh("x", "echo", "still", "there"); got != "still there" {
		t.Errorf("after the flood: %q", got)
	}
	var size int64
	filepath.Walk(b.RuntimeDir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			size += fi.Size()
		}
		return nil
	})
	if size > 256<<10 {
		t.Errorf("the runtime directory holds %d bytes", size)
	}
	alice.stop("x")
	b.gone()
}

// A caller's own kernel boots from a path only the caller can read, with the
// caller's root file system and disks.
func TestOwnKernel(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	home := b.Home(testbed.Alice)
	private := func(name string) string {
		to := filepath.Join(home, name)
		in, err := os.ReadFile(filepath.Join(b.Image, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, in, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(to, int(testbed.Alice.UID), int(testbed.Alice.GID)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	alice.small("own")
	kernel, rootfs, initrd := private("vmlinux"), private("rootfs.squashfs"), private("initramfs.cpio")
	out, errs, err := alice.run("vmc", "start", "own", "--kernel", kernel, "--rootfs", rootfs, "--initrd", initrd,
		"--kernel-param", "mine=yes")
	if err != nil || !strings.Contains(out, "own is running") {
		t.Fatalf("vmc start: %v: %s%s", err, out, errs)
	}
	if got := alice.vsh("own", "cat", "/proc/cmdline"); !strings.Contains(got, "mine=yes") {
		t.Errorf("command line: %s", got)
	}
	alice.stop("own")

	// The same by descriptors alone.
	var files []*os.File
	for _, p := range []string{kernel, rootfs, initrd} {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "own", Fds: []pb.StartVmRequest_FdType{
		pb.StartVmRequest_KERNEL, pb.StartVmRequest_ROOTFS, pb.StartVmRequest_INITRD}}, &resp, files...)
	if !resp.Success {
		t.Fatal(resp.FailureReason)
	}
	alice.stop("own")
	b.gone()
}

// ConfigureVm is what a guest gets at its next start.
func TestConfigureVm(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	for what, settings := range map[string]map[string]godbus.Variant{
		"too little memory": {"memory": godbus.MakeVariant(uint64(1))},
		"too much memory":   {"memory": godbus.MakeVariant(uint64(1 << 40))},
		"no CPU":            {"cpus": godbus.MakeVariant(uint32(0))},
		"too many CPUs":     {"cpus": godbus.MakeVariant(uint32(1 << 20))},
		"a network":         {"network": godbus.MakeVariant("bridge")},
	} {
		if err := alice.own("ConfigureVm", "x", "", settings).Err; errorName(err) != dbus.ErrorInvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, settings := range map[string]map[string]godbus.Variant{
		"an unknown setting": {"colour": godbus.MakeVariant("red")},
		"a wrong type":       {"memory": godbus.MakeVariant("much")},
	} {
		if err := alice.own("ConfigureVm", "x", "", settings).Err; errorName(err) != invalidArgs {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := alice.own("ConfigureVm", "x", "", map[string]godbus.Variant{"memory": godbus.MakeVariant(uint64(600)),
		"cpus": godbus.MakeVariant(uint32(2)), "network": godbus.MakeVariant("none")}).Err
	if err != nil {
		t.Fatal(err)
	}
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "x"}, &resp)
	if !resp.Success || resp.VmInfo.AllocatedMemory != 600<<20 || resp.VmInfo.Ipv4Address != 0 {
		t.Fatalf("StartVm: %v", &resp)
	}
	if got := alice.vsh("x", "nproc"); got != "2" {
		t.Errorf("%s CPUs", got)
	}
	if got := alice.vsh("x", "ls", "/sys/class/net"); got != "lo" {
		t.Errorf("interfaces: %s", got)
	}
	alice.stop("x")
	b.gone()
}
