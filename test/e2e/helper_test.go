package e2e

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// With the helper the service opens nothing of anybody's itself: a user's own
// kernel and system boot by what the helper opened with the user's rights, and
// what these do not reach is refused. A helper that was killed is missed, and
// the next one used.
func TestHelper(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.concierge.Stop(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h, err := b.StartHelper(ctx)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.log)
	}
	t.Cleanup(func() { h.Stop(syscall.SIGTERM) })
	b.startConcierge("--helper", b.HelperSocket())
	alice := b.client(testbed.Alice)

	home, bobs := b.Home(testbed.Alice), b.Home(testbed.Bob)
	own := func(from, to string, u testbed.User) string {
		copyTo(t, from, to)
		if err := os.Chown(to, int(u.UID), int(u.GID)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	link := func(name, to string) string {
		path := filepath.Join(home, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kernel := own(filepath.Join(image, "vmlinux"), filepath.Join(home, "own kernel"), testbed.Alice)
	root := own(filepath.Join(image, "rootfs.squashfs"), filepath.Join(home, "own root"), testbed.Alice)
	kernelOfBob := own("/etc/passwd", filepath.Join(bobs, "kernel"), testbed.Bob)
	if err := os.Chmod(bobs, 0o755); err != nil { // so that only the file's mode protects it
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(bobs, 0o700) })
	text := own("/etc/passwd", filepath.Join(home, "text"), testbed.Alice)
	fifo := filepath.Join(home, "pipe")
	if err := makeFIFO(fifo, testbed.Alice); err != nil {
		t.Fatal(err)
	}
	ear := alice.listen()
	refused := func(path, want string) {
		t.Helper()
		var resp pb.StartVmResponse
		alice.must("StartVm", &pb.StartVmRequest{Name: "x", Vm: &pb.VirtualMachineSpec{Kernel: path}}, &resp)
		if resp.Success || !strings.Contains(resp.FailureReason, want) {
			t.Errorf("%s: %v, want a reason with %q", path, &resp, want)
		}
	}
	refused(kernelOfBob, "permission denied")
	refused(link("to bob's", kernelOfBob), "permission denied")
	refused(link("to root's", "/etc/shadow"), "permission denied")
	refused(fifo, "not a regular file")
	refused(link("to a device", "/dev/zero"), "not a regular file")
	refused("/proc/self/exe", "too many levels")
	refused(filepath.Join(home, "nothing"), "no such file")
	refused(link("to text", text), "bzImage") // opened, and no kernel

	h.Stop(syscall.SIGKILL)
	refused(text, "the privileged helper")
	h2, err := b.StartHelper(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h2.Stop(syscall.SIGTERM) })
	refused(text, "bzImage")
	ear.silent(alice)

	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "own", Vm: &pb.VirtualMachineSpec{Kernel: kernel, Rootfs: root}}, &resp)
	if !resp.Success {
		t.Fatal(resp.FailureReason)
	}
	var stop pb.SuccessFailureResponse
	if alice.must("StopVm", &pb.StopVmRequest{Name: "own"}, &stop); !stop.Success {
		t.Error(stop.FailureReason)
	}
	b.gone()
	for _, want := range []string{
		`msg=done audit=true verb=open uid=64101 path="` + kernel + `" mode=ro`,
		`msg=done audit=true verb=open uid=64101 path="` + root + `" mode=ro`,
		`msg="not done" audit=true verb=open uid=64101 path=` + kernelOfBob,
	} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(to) })
}
