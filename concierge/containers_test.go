package concierge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// fakeContainers stands in for vm_cicerone.
type fakeContainers struct {
	mu      sync.Mutex
	heard   []string
	started []ContainerVM
	// hold, where it is set, keeps notices from being answered until it is
	// closed.
	hold chan struct{}
	// ensure starts a container.
	ensure func(ctx context.Context, container, user string) error
}

func (f *fakeContainers) hear(ctx context.Context, what string) error {
	f.mu.Lock()
	f.heard = append(f.heard, what)
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *fakeContainers) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	heard := f.heard
	f.heard = nil
	return heard
}

func (f *fakeContainers) VMStarted(ctx context.Context, v ContainerVM) error {
	f.mu.Lock()
	f.started = append(f.started, v)
	f.mu.Unlock()
	return f.hear(ctx, "started "+v.Name)
}

func (f *fakeContainers) VMStopping(ctx context.Context, o policy.Owner, name string) error {
	return f.hear(ctx, "stopping "+name)
}

func (f *fakeContainers) VMStopped(ctx context.Context, o policy.Owner, name string) error {
	return f.hear(ctx, "stopped "+name)
}

func (*fakeContainers) Start(context.Context) error { return nil }

func (f *fakeContainers) EnsureContainer(ctx context.Context, _ uint32, container, user string) error {
	return f.ensure(ctx, container, user)
}

// withContainers gives a bed an image that has containers, and somebody who
// knows them.
func withContainers(t *testing.T) (*bed, *fakeContainers) {
	t.Helper()
	b := newBed(t)
	f := &fakeContainers{}
	b.cfg.Containers = f
	manifest := `{"features":["tremplin"],"files":[{"name":"vmlinux","size":6},{"name":"initramfs.cpio","size":6},{"name":"rootfs.squashfs","size":6},{"name":"tools.squashfs","size":5}]}`
	for name, text := range map[string]string{"manifest.json": manifest, "tools.squashfs": "tools"} {
		if err := os.WriteFile(filepath.Join(b.cfg.ImageDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b, f
}

// startTermina starts a VM with containers.
func (b *bed) startTermina(s *Service, name string) (*pb.StartVmResponse, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patienceOfTests)
	defer cancel()
	return s.StartVm(ctx, alice, b.termina(s, name, 1<<20), nil)
}

func statusOf(t *testing.T, s *Service, name string) pb.VmStatus {
	t.Helper()
	i, err := s.GetVmInfo(t.Context(), alice, &pb.GetVmInfoRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return i.VmInfo.Status
}

// eventually waits for what happens aside.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patienceOfTests); !f(); {
		if time.Now().After(end) {
			t.Fatal("it never comes to be: " + what)
		}
		<-time.After(time.Millisecond)
	}
}

// A VM with containers is starting until their manager has reported, which a
// restart of the service does not change.
func TestStartingUntilTremplinIsReady(t *testing.T) {
	b, f := withContainers(t)
	s := b.serve()
	resp, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	const starting, running = pb.VmStatus_VM_STATUS_STARTING, pb.VmStatus_VM_STATUS_RUNNING
	if resp.Status != starting || resp.VmInfo.Status != starting || statusOf(t, s, "x") != starting {
		t.Errorf("started: %v", resp)
	}
	list, err := s.ListVms(t.Context(), alice, &pb.ListVmsRequest{})
	if err != nil || len(list.Vms) != 1 || list.Vms[0].Status != starting {
		t.Errorf("listed as %v, %v", list, err)
	}
	s.Close()
	s = b.serve()
	if got := statusOf(t, s, "x"); got != starting {
		t.Errorf("after a restart it is %v", got)
	}
	cid := uint32(resp.VmInfo.Cid)
	if err := s.TremplinReady(t.Context(), cid+1); !errors.Is(err, ErrNotFound) {
		t.Errorf("another VM: %v", err)
	}
	for range 2 {
		if err := s.TremplinReady(t.Context(), cid); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s, "x"); got != running {
			t.Errorf("it is %v", got)
		}
	}
	eventually(t, "VmChanged with running", func() bool {
		b.events.mu.Lock()
		defer b.events.mu.Unlock()
		return slices.ContainsFunc(b.events.changes, func(c change) bool { return c.what["name"] == "x" && c.what["status"] == "running" })
	})
	s.Close()
	s = b.serve()
	if got := statusOf(t, s, "x"); got != running {
		t.Errorf("after another restart it is %v", got)
	}
	b.stop(s, "x")
	b.gone()
	f.take()

	// One without containers has nothing to wait for.
	plain, err := b.small(s, "y")
	if err != nil || plain.Status != running {
		t.Errorf("%v, %v", plain, err)
	}
	if err := s.TremplinReady(t.Context(), uint32(plain.VmInfo.Cid)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a VM without containers: %v", err)
	}
	b.stop(s, "y")
}

// What is told of a VM is what it is, and the VM waits for none of it.
func TestContainersAreTold(t *testing.T) {
	b, f := withContainers(t)
	s := b.serve()
	f.hold = make(chan struct{})
	resp, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	close(f.hold)
	f.mu.Lock()
	f.hold = nil
	f.mu.Unlock()
	list, err := s.ListVMEndpoints(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	s.ContainersReturned()
	eventually(t, "it is told twice", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.started) == 2 })
	for _, got := range f.started {
		if got.Owner.UID != 64101 || got.Name != "x" || got.Type != appspb.VmType_TERMINA || int64(got.CID) != resp.VmInfo.Cid ||
			got.PID != int(resp.VmInfo.Pid) || got.Subnet.Bits() != 28 || !DefaultPool.Contains(got.Subnet.Addr()) || got.Subnet.Contains(got.Address) {
			t.Errorf("it is told %+v", got)
		}
		if d := list[0]; d["container_subnet"] != got.Subnet.String() || d["address"] != got.Address.String() || d["pid"] != uint32(got.PID) ||
			d["cid"] != got.CID || d["uid"] != uint32(64101) || d["name"] != "x" || d["containers"] != true || d["type"] != uint32(appspb.VmType_TERMINA) {
			t.Errorf("listed is %v", d)
		}
	}
	b.stop(s, "x")
	if got, want := f.take(), []string{"started x", "started x", "stopping x", "stopped x"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
	b.gone()
}

// The end of a VM waits a moment for what is told of its containers, and not
// for one who does not answer.
func TestStopDoesNotWaitForContainers(t *testing.T) {
	b, f := withContainers(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.hold = make(chan struct{})
	f.mu.Unlock()
	b.stop(s, "x")
	if got := b.events.take(); !slices.Contains(got, "VmStopped x") {
		t.Errorf("signals %q", got)
	}
	b.gone()
}

// A start that fails is told as the end of a VM.
func TestFailedStartIsTold(t *testing.T) {
	t.Setenv(guestEnv, "refuses")
	b, f := withContainers(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err == nil {
		t.Fatal("it started")
	}
	if got, want := f.take(), []string{"stopped x"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// guestDials connects to a port of the host as the VM's guest does.
func guestDials(t *testing.T, s *Service, name string, port uint32) net.Conn {
	t.Helper()
	v, _, err := s.up(alice, name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", vsock.EndpointPath(filepath.Join(v.dir, vmm.VsockSocket), port))
	if err != nil {
		paths, _ := filepath.Glob(v.dir + "/*")
		t.Fatalf("%v; there are %q", err, paths)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The endpoints are real, this service leaves them alone, and they are there
// again after its restart; calls that come meanwhile wait.
func TestEndpoints(t *testing.T) {
	b, _ := withContainers(t)
	s := b.serve()
	resp, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	cid := uint32(resp.VmInfo.Cid)
	for range 2 {
		waiting := map[uint32]net.Conn{}
		for _, port := range containerPorts {
			waiting[port] = guestDials(t, s, "x", port)
		}
		e, err := s.OpenVMEndpoints(t.Context(), cid)
		if err != nil {
			t.Fatal(err)
		}
		if e.VM["passed"] != false || e.VM["name"] != "x" {
			t.Errorf("the VM is %v", e.VM)
		}
		for i, f := range []*os.File{e.Tremplin, e.Crash, e.Container} {
			port := containerPorts[i]
			l, err := vsock.ListenerFile(f, vsock.Addr{VM: "x", CID: cid}, port, false)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "%d\n", port)
			c.Close()
			l.Close()
			waiting[port].SetReadDeadline(time.Now().Add(patienceOfTests))
			if line, err := bufio.NewReader(waiting[port]).ReadString('\n'); err != nil || line != fmt.Sprintln(port) {
				t.Errorf("port %d says %q, %v", port, line, err)
			}
		}
		stream, err := s.ConnectVMVsock(t.Context(), cid, vsock.PortMaitred)
		if err != nil {
			t.Fatal(err)
		}
		stream.Close()
		s.Close()
		s = b.serve()
	}
	for _, cid := range []uint32{0, 2, cid + 1, vsock.CIDAny} {
		if _, err := s.OpenVMEndpoints(t.Context(), cid); !errors.Is(err, ErrNotFound) {
			t.Errorf("CID %d: %v", cid, err)
		}
		if _, err := s.ConnectVMVsock(t.Context(), cid, 1); !errors.Is(err, ErrNotFound) {
			t.Errorf("CID %d: %v", cid, err)
		}
	}
	b.stop(s, "x")
	if _, err := s.OpenVMEndpoints(t.Context(), cid); !errors.Is(err, ErrNotFound) {
		t.Errorf("a VM that has gone: %v", err)
	}
	if list, err := s.ListVMEndpoints(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// containerSignals waits until no container is being started any more, and
// returns how that was told.
func containerSignals(t *testing.T, b *bed, s *Service, name string) []string {
	t.Helper()
	eventually(t, "nothing is being started", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		v := s.vms[key{uid: 64101, name: name}]
		return v == nil || len(v.containerStarts) == 0
	})
	s.Close() // what was begun has been told
	return slices.DeleteFunc(b.events.take(), func(e string) bool { return !strings.HasPrefix(e, "Container") })
}

func TestStartContainer(t *testing.T) {
	const runs, starting = pb.ContainerStatus_CONTAINER_STATUS_RUNNING, pb.ContainerStatus_CONTAINER_STATUS_STARTING
	hold, failing := make(chan struct{}), make(chan struct{})
	for name, test := range map[string]struct {
		ensure func(ctx context.Context, container, user string) error
		then   func(t *testing.T, b *bed, s *Service)
		status pb.ContainerStatus
		user   string
		err    string
		want   []string
	}{
		"runs already": {status: runs, ensure: func(_ context.Context, container, user string) error {
			if container != "penguin" || user != "ada" {
				return fmt.Errorf("%s %s", container, user)
			}
			return nil
		}},
		"no user is named": {user: "-", status: runs, ensure: func(_ context.Context, _, user string) error {
			if user != "user" { // uid 64101 has no account here
				return errors.New(user)
			}
			return nil
		}},
		"fails at once": {err: "no space", ensure: func(context.Context, string, string) error { return errors.New("no space") }},
		"takes a while": {status: starting, want: []string{"ContainerStarted "},
			ensure: func(context.Context, string, string) error { <-hold; return nil },
			then:   func(*testing.T, *bed, *Service) { close(hold) }},
		"fails later": {status: starting, want: []string{"ContainerStartupFailed "},
			ensure: func(context.Context, string, string) error { <-failing; return errors.New("no space") },
			then:   func(*testing.T, *bed, *Service) { close(failing) }},
		"the VM is stopped": {status: starting, want: []string{"ContainerStartupFailed "},
			ensure: func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() },
			then:   func(_ *testing.T, b *bed, s *Service) { b.stop(s, "x") }},
		"the VM dies": {status: starting, want: []string{"ContainerStartupFailed "},
			ensure: func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() },
			then: func(t *testing.T, b *bed, s *Service) {
				_, m, err := s.up(alice, "x")
				if err != nil {
					t.Fatal(err)
				}
				syscall.Kill(m.PID(), syscall.SIGKILL)
				b.awaitGone(s)
			}},
		"the service ends": {status: starting, want: []string{"ContainerStartupFailed "},
			ensure: func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() },
			then:   func(_ *testing.T, b *bed, s *Service) { s.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := withContainers(t)
			s := b.serve()
			info, err := b.startTermina(s, "x")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.TremplinReady(t.Context(), uint32(info.VmInfo.Cid)); err != nil {
				t.Fatal(err)
			}
			f.ensure = test.ensure
			req := &pb.StartContainerRequest{VmName: "x", ContainerUsername: "ada"}
			if test.user == "-" {
				req.ContainerUsername = ""
			}
			resp, err := s.StartContainer(t.Context(), alice, req)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%v, %v", resp, err)
				}
			} else if err != nil || resp.Status != test.status {
				t.Errorf("%v, %v", resp, err)
			}
			if test.status == starting {
				// Whoever asks again waits for the same signal.
				if again, err := s.StartContainer(t.Context(), alice, req); err != nil || again.Status != starting {
					t.Errorf("asked again: %v, %v", again, err)
				}
			}
			if test.then != nil {
				test.then(t, b, s)
			}
			if got := containerSignals(t, b, s, "x"); !slices.Equal(got, test.want) {
				t.Errorf("signals %q, want %q", got, test.want)
			}
		})
	}
}

// Whoever asks for a container before there can be any waits for that.
func TestStartContainerEarly(t *testing.T) {
	b, f := withContainers(t)
	s := b.serve()
	info, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	ready := false
	f.ensure = func(context.Context, string, string) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !ready {
			return errors.New("it is too early")
		}
		return nil
	}
	resp, err := s.StartContainer(t.Context(), alice, &pb.StartContainerRequest{VmName: "x"})
	if err != nil || resp.Status != pb.ContainerStatus_CONTAINER_STATUS_STARTING {
		t.Errorf("%v, %v", resp, err)
	}
	f.mu.Lock()
	ready = true
	f.mu.Unlock()
	if err := s.TremplinReady(t.Context(), uint32(info.VmInfo.Cid)); err != nil {
		t.Fatal(err)
	}
	if got, want := containerSignals(t, b, s, "x"), []string{"ContainerStarted "}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
}

// What cannot be started is refused with a reason.
func TestStartContainerRefuses(t *testing.T) {
	b, f := withContainers(t)
	s := b.serve()
	f.ensure = func(context.Context, string, string) error { return nil }
	if _, err := b.small(s, "plain"); err != nil {
		t.Fatal(err)
	}
	for vm, want := range map[string]string{"none": "no such VM", "plain": "start_termina"} {
		if _, err := s.StartContainer(t.Context(), alice, &pb.StartContainerRequest{VmName: vm}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("VM %q: %v", vm, err)
		}
	}
	for _, name := range []string{"A", "1", "-", "a/b", "..", "a.b", "a\n", strings.Repeat("a", 64)} {
		if _, err := s.StartContainer(t.Context(), alice, &pb.StartContainerRequest{VmName: "plain", ContainerName: name}); !errors.Is(err, ErrInvalid) {
			t.Errorf("container %q: %v", name, err)
		}
	}
	b.stop(s, "plain")
}

// With kernel vsock, streams to vm_cicerone's ports are passed on, each VM's to
// its own; the listeners stand for the demultiplexer of the host's ports.
func TestPassages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{passages: map[uint32]*vsock.Passage{}}
	v.passages[vsock.PortTremplinListener] = vsock.NewPassage(inner)
	m := kernelMachine()
	s := kernelService(t)
	f, err := s.openEndpoint(v, m, vsock.PortTremplinListener)
	if err != nil {
		t.Fatal(err)
	}
	l, err := vsock.ListenerFile(f, vsock.Addr{CID: 40}, vsock.PortTremplinListener, true)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := io.ReadAll(dialled); err != nil {
		t.Error(err)
	}
	v.closePassages()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the VM's end: %v", err)
	}
	if _, err := s.openEndpoint(v, m, vsock.PortTremplinListener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("opened after the VM's end: %v", err)
	}
}
