package containers

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// patience bounds whatever a test waits for; nothing is asserted on it.
const patience = 4 * time.Minute

// vm and container are what most of the tests are about.
const (
	vm        = "termina"
	container = "penguin"
	// containerRoot is where the VM has the container's files.
	containerRoot = "/mnt/stateful/incus/storage-pools/default/containers/" + container + "/rootfs"
)

// A stack is both daemons on a private bus, and alice on it.
type stack struct {
	*testbed.Bed
	t                   *testing.T
	log                 *os.File
	concierge, cicerone *testbed.Daemon
	conn                *godbus.Conn
	ear                 *ear
	creations           map[string]*created // ends that nobody has asked for yet
}

// newStack starts a bus and the daemons; everything ends with the test.
func newStack(t *testing.T) *stack {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "daemons")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	bed, err := testbed.New(t.Context(), testbed.Options{Bin: bin, Image: image, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{Bed: bed, t: t, log: log, creations: map[string]*created{}}
	t.Cleanup(func() {
		if t.Failed() {
			s.tell()
		}
		bed.Close()
	})
	s.setZone("Asia/Tokyo")
	s.startConcierge()
	s.startCicerone()
	s.conn, err = bed.Dial(t.Context(), testbed.Alice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	s.ear = listen(t, s.conn)
	return s
}

func (s *stack) startConcierge() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var err error
	if s.concierge, err = s.StartConcierge(ctx, "--accel", "tcg"); err != nil {
		s.t.Fatalf("start vm_concierge: %v", err)
	}
}

func (s *stack) startCicerone() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var err error
	if s.cicerone, err = s.StartCicerone(ctx, "--localtime", s.localtime()); err != nil {
		s.t.Fatalf("start vm_cicerone: %v", err)
	}
}

// tell logs what helps to find out why a test failed.
func (s *stack) tell() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, _ := s.program(ctx, nil, "vmc", "logs", vm)
	s.t.Logf("the VM logged at last:\n%s", last(out, 80))
	said, _ := os.ReadFile(s.log.Name())
	s.t.Logf("the daemons said at last:\n%s", last(string(said), 120))
}

func last(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// program runs a program as alice until the context ends, and returns what it
// printed, errors included.
func (s *stack) program(ctx context.Context, input io.Reader, name string, args ...string) (string, error) {
	c := s.Command(testbed.Alice, name, args...)
	c.Stdin = input
	out, err := (&cmd{Cmd: c, ctx: ctx}).CombinedOutput()
	return string(out), err
}

// run is program for one that has to succeed.
func (s *stack) run(name string, args ...string) string {
	s.t.Helper()
	return s.runWith(nil, name, args...)
}

func (s *stack) runWith(input io.Reader, name string, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	out, err := s.program(ctx, input, name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// vmRoot runs a script as root in the VM.
func (s *stack) vmRoot(script string) string {
	s.t.Helper()
	return unbannered(s.runWith(strings.NewReader(script), "vsh", "--user", "root", vm, "--", "INCUS_DIR=/mnt/stateful/incus", "bash", "-es"))
}

// root runs a script as root in the container, without its agent.
func (s *stack) root(script string) string {
	s.t.Helper()
	return unbannered(s.runWith(strings.NewReader(script), "vsh", "--user", "root", vm, "--",
		"INCUS_DIR=/mnt/stateful/incus", "incus", "exec", container, "--", "bash", "-es"))
}

// unbannered is what a script printed without the words with which Incus' own
// client greets its user the first time.
func unbannered(out string) string {
	if strings.HasPrefix(out, "To start your first container") {
		_, out, _ = strings.Cut(out, "\n\n")
	}
	return out
}

// shell runs a script in the container as its user, through its agent.
func (s *stack) shell(script string) string {
	s.t.Helper()
	return s.runWith(strings.NewReader(script), "vsh", vm, container, "--", "bash", "-es")
}

// put copies a file into the VM.
func (s *stack) put(path, to string) {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	s.runWith(f, "vsh", "--user", "root", vm, "--", "bash", "-ec", "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\" && chmod 755 \"$1\"", "put", to)
}

// startVM starts a VM with room for containers.
func (s *stack) startVM() {
	s.t.Helper()
	s.run("vmc", "config", vm, "--memory", "3G", "--cpus", "2")
	s.run("vmc", "start", vm, "--size", "8G", "--cpus", "2")
	// The manager of containers answers a little later.
	await[*ciceronepb.TremplinStartedSignal](s.ear, nil)
}

// call calls a method of vm_cicerone as alice.
func (s *stack) call(method string, req, resp proto.Message) error {
	s.t.Helper()
	return callOn(s.t, s.conn.Object(dbus.CiceroneName, dbus.CiceronePath), dbus.CiceroneInterface+"."+method, req, resp)
}

// must is call for one that the bus is expected to let through.
func (s *stack) must(method string, req, resp proto.Message) {
	s.t.Helper()
	if err := s.call(method, req, resp); err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
}

// concierged is must for a method of vm_concierge.
func (s *stack) concierged(method string, req, resp proto.Message) {
	s.t.Helper()
	if err := callOn(s.t, s.conn.Object(dbus.ConciergeName, dbus.ConciergePath), dbus.ConciergeInterface+"."+method, req, resp); err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
}

func callOn(t *testing.T, object godbus.BusObject, method string, req, resp proto.Message) error {
	t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []byte
	if err := object.CallWithContext(ctx, method, 0, b).Store(&out); err != nil {
		return err
	}
	if err := proto.Unmarshal(out, resp); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return nil
}

// createContainer makes the container from the shipped image, with its user.
func (s *stack) createContainer() {
	s.t.Helper()
	var created ciceronepb.CreateLxdContainerResponse
	s.must("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: vm, ContainerName: container}, &created)
	if created.Status != ciceronepb.CreateLxdContainerResponse_CREATING {
		s.t.Fatalf("CreateLxdContainer: %v", &created)
	}
	if end := await[*ciceronepb.LxdContainerCreatedSignal](s.ear, nil); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED ||
		end.VmName != vm || end.ContainerName != container {
		s.t.Fatalf("LxdContainerCreated: %v", end)
	}
	var user ciceronepb.SetUpLxdContainerUserResponse
	s.must("SetUpLxdContainerUser", &ciceronepb.SetUpLxdContainerUserRequest{VmName: vm, ContainerName: container, ContainerUsername: "alice"}, &user)
	if user.Status != ciceronepb.SetUpLxdContainerUserResponse_SUCCESS || user.ContainerUsername != "alice" {
		s.t.Fatalf("SetUpLxdContainerUser: %v", &user)
	}
}

// startContainer starts the container and waits for its agent.
func (s *stack) startContainer() *ciceronepb.ContainerStartedSignal {
	s.t.Helper()
	var resp ciceronepb.StartLxdContainerResponse
	s.must("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: vm, ContainerName: container}, &resp)
	switch resp.Status {
	case ciceronepb.StartLxdContainerResponse_STARTED:
	case ciceronepb.StartLxdContainerResponse_STARTING: // it takes longer than an answer may
		await(s.ear, func(m *starting) bool { return m.Status == ciceronepb.LxdContainerStartingSignal_STARTED })
	default:
		s.t.Fatalf("StartLxdContainer: %v", &resp)
	}
	return await[*ciceronepb.ContainerStartedSignal](s.ear, nil)
}

// stopVM stops the VM in order.
func (s *stack) stopVM() {
	s.t.Helper()
	var resp conciergepb.SuccessFailureResponse
	s.concierged("StopVm", &conciergepb.StopVmRequest{Name: vm}, &resp)
	if !resp.Success {
		s.t.Fatalf("StopVm: %v", &resp)
	}
}

// A prepared disk is that of a VM whose container was created, set up, and has
// run once. Tests start from a copy each.
var prepared struct {
	sync.Mutex
	path string
}

// preparedStack is a stack whose VM runs from the prepared disk, and its
// container too.
func preparedStack(t *testing.T) *stack {
	t.Helper()
	prepare(t)
	s := newStack(t)
	s.usePrepared()
	s.startVM()
	s.startContainer()
	return s
}

// usePrepared makes the VM's disk a copy of the prepared one.
func (s *stack) usePrepared() {
	s.t.Helper()
	var disk conciergepb.CreateDiskImageResponse
	s.concierged("CreateDiskImage", &conciergepb.CreateDiskImageRequest{VmName: vm, DiskSize: 8 << 30}, &disk)
	if disk.DiskPath == "" {
		s.t.Fatalf("CreateDiskImage: %v", &disk)
	}
	copySparse(s.t, preparedDisk(), disk.DiskPath)
}

func preparedDisk() string {
	prepared.Lock()
	defer prepared.Unlock()
	return prepared.path
}

// preparing has one test at a time prepare the disk.
var preparing sync.Mutex

// prepare makes the prepared disk unless there is one.
func prepare(t *testing.T) {
	t.Helper()
	preparing.Lock()
	defer preparing.Unlock()
	if preparedDisk() != "" {
		return
	}
	// A test of its own, so that the stack ends before another one begins.
	t.Run("prepare", func(t *testing.T) {
		s := newStack(t)
		s.startVM()
		s.createContainer()
		s.startContainer()
		s.stopVM()
		s.keepDisk()
	})
	if preparedDisk() == "" {
		t.FailNow()
	}
}

// keepDisk keeps the disk of the VM, which does not run, as the prepared one.
func (s *stack) keepDisk() {
	s.t.Helper()
	var disks conciergepb.ListVmDisksResponse
	s.concierged("ListVmDisks", &conciergepb.ListVmDisksRequest{AllLocations: true}, &disks)
	if len(disks.Images) != 1 {
		s.t.Fatalf("ListVmDisks: %v", &disks)
	}
	from, err := filepath.Glob(filepath.Join(s.StateDir, "disks", "*", "*.img"))
	if err != nil || len(from) != 1 {
		s.t.Fatalf("the disk of the VM: %v, %v", from, err)
	}
	to := filepath.Join(testbed.Base, "prepared.img")
	copySparse(s.t, from[0], to)
	prepared.Lock()
	defer prepared.Unlock()
	prepared.path = to
}

func copySparse(t *testing.T, from, to string) {
	t.Helper()
	// Into the file that is there: its owner is to stay.
	out, err := exec.Command("dd", "if="+from, "of="+to, "bs=1M", "conv=sparse", "status=none").CombinedOutput()
	if err != nil {
		t.Fatalf("copy %s to %s: %v: %s", from, to, err, bytes.TrimSpace(out))
	}
}

// kill ends a daemon without notice and waits for its end.
func kill(d *testbed.Daemon) {
	d.Cmd.Process.Signal(syscall.SIGKILL)
	<-d.Done()
}
