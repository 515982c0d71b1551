package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// image makes a file of alice's own with a file system, or of a format.
func (c *client) image(path, format string) {
	c.t.Helper()
	command := exec.Command("qemu-img", "create", "-q", "-f", format, path, "32M")
	if format == "ext4" {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			c.t.Fatal(err)
		}
		if err := os.Truncate(path, 32<<20); err != nil {
			c.t.Fatal(err)
		}
		command = exec.Command("/sbin/mkfs.ext4", "-q", path)
	}
	if out, err := command.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chown(path, int(c.user.UID), int(c.user.GID)); err != nil {
		c.t.Fatal(err)
	}
}

// Everything that a request can say of a VM is found in its guest.
func TestStartAsAsked(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	dir := filepath.Join(b.Dir, "images")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var disks []*pb.DiskImage
	add := func(format string, d *pb.DiskImage) {
		d.Path = filepath.Join(dir, fmt.Sprintf("%d.%s", len(disks), format))
		alice.image(d.Path, format)
		disks = append(disks, d)
	}
	add("ext4", &pb.DiskImage{Writable: true, DoMount: true, MountPoint: "/mnt/data/written", Fstype: "ext4",
		Flags: unix.MS_NOSUID | unix.MS_NOATIME, Data: "errors=remount-ro,stripe=8"})
	add("ext4", &pb.DiskImage{DoMount: true, MountPoint: "/mnt/data/read", Fstype: "ext4"})
	add("qcow2", &pb.DiskImage{Writable: true, ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2})
	add("qcow2", &pb.DiskImage{ImageType: pb.DiskImageType_DISK_IMAGE_QCOW2})
	for len(disks) < 10 {
		add("raw", &pb.DiskImage{Writable: len(disks)%2 == 0})
	}
	alice.start(&pb.StartVmRequest{Name: "x", Cpus: 2, KernelParams: []string{"word=of-alice", "quiet"},
		OemStrings: []string{"io.test:one,two=3", "second"}, Timeout: 170, Disks: disks})

	in := func(script string) string { t.Helper(); return alice.vsh("x", "sh", "-c", script) }
	if got := in("nproc"); got != "2" {
		t.Errorf("%s CPUs", got)
	}
	if got := in("cat /proc/cmdline"); !strings.Contains(got, " word=of-alice quiet") {
		t.Errorf("kernel parameters: %s", got)
	}
	if got := alice.rootShell("x", "tr '\\0' '\\n' < /sys/firmware/dmi/tables/DMI"); !strings.Contains(got, "io.test:one,two=3\nsecond\n") {
		t.Errorf("OEM strings: %q", got)
	}
	if got := in("ls /dev/vd? | wc -l; cat /sys/block/vdk/serial"); got != "11\ndisk9" {
		t.Errorf("disks: %q", got)
	}
	if got := in("for d in b c d e f g; do cat /sys/block/vd$d/ro; done | tr -d '\\n'"); got != "010101" {
		t.Errorf("read-only disks: %q", got)
	}
	for target, want := range map[string][]string{
		"/mnt/data/written": {"rw", "nosuid", "noatime", "errors=remount-ro", "stripe=8"},
		"/mnt/data/read":    {"ro"},
	} {
		got := "," + in("findmnt -n -o FSTYPE,OPTIONS "+target) + ","
		for _, w := range want {
			if !strings.Contains(strings.ReplaceAll(got, " ", ","), ","+w+",") {
				t.Errorf("%s: %s without %s", target, got, w)
			}
		}
	}
	alice.rootShell("x", "echo kept > /mnt/data/written/file; dd if=/dev/zero of=/dev/vdd bs=1M count=8 conv=fsync status=none")
	if out := in("echo lost > /mnt/data/read/file 2>&1 || echo refused"); !strings.Contains(out, "refused") {
		t.Errorf("written to a disk that may only be read: %s", out)
	}
	alice.stop("x")
	out, err := exec.Command("/sbin/debugfs", "-R", "cat file", disks[0].Path).Output()
	if err != nil || string(out) != "kept\n" {
		t.Errorf("on the disk is %q, %v", out, err)
	}
	// The qcow2 has grown by what the guest wrote, so it was used as one.
	if out, err := exec.Command("qemu-img", "check", disks[2].Path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	b.gone()

	alice.small("x")
	var resp pb.StartVmResponse
	add("raw", &pb.DiskImage{})
	alice.must("StartVm", &pb.StartVmRequest{Name: "x", Disks: disks}, &resp)
	if resp.Success || !strings.Contains(resp.FailureReason, "11 disks are more than 10") {
		t.Errorf("eleven disks: %v", &resp)
	}
}
