package e2e

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

// serve9P lets a diod serve a directory to the first of a VM that dials a port
// of the host, until the test ends.
func (g *liveGuest) serve9P(t *testing.T, port uint32, export string) {
	t.Helper()
	path := vsock.EndpointPath(filepath.Join(g.dir(t), "vm.vsock"), port)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// The VM's backend runs as another user.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		guest, err := l.Accept()
		if err != nil {
			return // the test has ended
		}
		defer guest.Close()
		// A test that failed has not unmounted.
		defer context.AfterFunc(t.Context(), func() { guest.Close() })()
		if err := g.relay9P(guest, export); err != nil {
			t.Errorf("9P: %v", err)
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
}

// relay9P connects a guest with a diod until the guest ends the connection.
func (g *liveGuest) relay9P(guest net.Conn, export string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	server, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return err
	}
	defer server.Close()
	diod := exec.Command("/usr/sbin/diod", "-f", "-n", "-L", "stderr", "-c", "/dev/null",
		"-S", "-U", "root", "-e", export, "-r", "3", "-w", "3")
	diod.ExtraFiles = []*os.File{theirs}
	diod.Stderr = g.bed.log
	err = diod.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	defer func() { diod.Process.Kill(); diod.Wait() }()
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(guest, server)
	}()
	err = attachTo(guest, server, export)
	if err == nil {
		io.Copy(server, guest)
	}
	server.Close()
	<-back
	return err
}

// attachTo passes on the first two messages of a client, its version and its
// attach, which does not say to what: a server of a share has but one. diod
// wants its name.
func attachTo(guest io.Reader, server io.Writer, export string) error {
	const tattach = 104
	for range 2 {
		head := make([]byte, 7) // size[4] type[1] tag[2]
		if _, err := io.ReadFull(guest, head); err != nil {
			return err
		}
		body := make([]byte, binary.LittleEndian.Uint32(head)-7)
		if _, err := io.ReadFull(guest, body); err != nil {
			return err
		}
		if head[4] == tattach {
			// fid[4] afid[4] uname[s] aname[s] n_uname[4]
			user := 10 + int(binary.LittleEndian.Uint16(body[8:]))
			name := binary.LittleEndian.AppendUint16(nil, uint16(len(export)))
			body = slices.Concat(body[:user], name, []byte(export), body[len(body)-4:])
			binary.LittleEndian.PutUint32(head, uint32(len(head)+len(body)))
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return err
		}
	}
	return nil
}

// mount9P shares a directory of the host, by a server that is not ours.
func (g *liveGuest) mount9P(t *testing.T) {
	mount := func(port uint32) (*vmtoolspb.MountResponse, error) {
		return g.m.Mount9P(t.Context(), &vmtoolspb.Mount9PRequest{Port: port, Target: "/mnt/shared"})
	}
	// Nobody serves that port: the call fails and says so.
	if r, err := mount(16385); err == nil && r.Error == 0 {
		t.Error("mounted from a port where nobody listens")
	}
	export := t.TempDir()
	if err := os.WriteFile(filepath.Join(export, "from-host"), []byte("written by the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.serve9P(t, 16384, export)
	if r, err := mount(16384); err != nil || r.Error != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	if got := g.sh(t, "findmnt -n -o FSTYPE /mnt/shared; cat /mnt/shared/from-host"); got != "9p\nwritten by the host" {
		t.Errorf("the guest sees %q", got)
	}
	// More than fits a message, or a packet.
	g.sh(t, "head -c 3000000 /dev/urandom > /mnt/shared/from-guest; mkdir /mnt/shared/d; echo more > /mnt/shared/d/f; sha256sum < /mnt/shared/from-guest > /mnt/shared/sum")
	out, err := exec.Command("sh", "-c", "cd "+export+" && sha256sum < from-guest | cmp - sum && cat d/f && stat -c %s from-guest").CombinedOutput()
	if err != nil || string(out) != "more\n3000000\n" {
		t.Errorf("the host sees %q, %v", out, err)
	}
	if err := os.WriteFile(filepath.Join(export, "from-host"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := g.sh(t, "cat /mnt/shared/from-host; findmnt -n -o OPTIONS /mnt/shared | tr , '\\n' | grep -xE 'nosuid|nodev' | sort | paste -sd' '"); got != "changednodev nosuid" {
		t.Errorf("the guest sees %q", got)
	}
	g.sh(t, "umount /mnt/shared")
}
