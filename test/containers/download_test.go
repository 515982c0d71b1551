package containers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

type (
	created     = ciceronepb.LxdContainerCreatedSignal
	downloading = ciceronepb.LxdContainerDownloadingSignal
)

// testServer puts the tests' own server into the VM, since the VM has no way out.
func (s *stack) testServer() {
	s.t.Helper()
	program := filepath.Join(s.t.TempDir(), "testserver")
	build := exec.Command("go", "build", "-o", program, "./testserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("go build: %v: %s", err, out)
	}
	s.put(program, "/run/testserver")
}

// serve serves images.
func (s *stack) serve() {
	s.t.Helper()
	s.testServer()
	s.vmRoot(`
for port in 8000 8001; do
	mkdir -p /run/served/$port
	spoil=; [ $port = 8000 ] || spoil=--spoil
	setsid /run/testserver --listen 127.0.0.1:$port --dir /run/served/$port --image /opt/google/cros-containers/image $spoil </dev/null >/run/served/$port.log 2>&1 &
done
for port in 8000 8001; do until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.1; done; done
`)
}

// download begins to create a container from the tests' server.
func (s *stack) download(name, server string) {
	s.t.Helper()
	var resp ciceronepb.CreateLxdContainerResponse
	s.must("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: vm, ContainerName: name,
		ImageServer: "http://127.0.0.1:" + server, ImageAlias: "debian/13"}, &resp)
	if resp.Status != ciceronepb.CreateLxdContainerResponse_CREATING {
		s.t.Fatalf("CreateLxdContainer from %s: %v", server, &resp)
	}
}

// creation waits for the end of one; others may end before it.
func (s *stack) creation(name string) *created {
	s.t.Helper()
	for s.creations[name] == nil {
		m := await[*created](s.ear, nil)
		if s.creations[m.ContainerName] != nil {
			s.t.Errorf("a second end: %v", m)
		}
		s.creations[m.ContainerName] = m
	}
	end := s.creations[name]
	delete(s.creations, name)
	return end
}

// nothingHalfMade checks what Incus has: the named containers, and no image but
// the shipped one, which is what the tests' server has as well.
func (s *stack) nothingHalfMade(names ...string) {
	s.t.Helper()
	got := s.vmRoot("incus list --format csv --columns n </dev/null 2>/dev/null; incus image list --format csv </dev/null 2>/dev/null | tail -n +2")
	if want := strings.Join(names, "\n"); got != want {
		s.t.Errorf("Incus has %q, want %q", got, want)
	}
}

// Images from a server: slow ones are seen to come, and those that do not come
// or are not what they should be leave nothing.
func TestDownloads(t *testing.T) {
	beside(t, 280)
	s := preparedStack(t)
	s.serve()

	s.download("slow", "8000/slow")
	if end := s.creation("slow"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("the slow one: %v", end)
	}
	// Its beginning, at least one step on the way, and its end.
	steps := all[*downloading](s.ear)
	if len(steps) < 3 || steps[0].DownloadProgress != 0 || steps[len(steps)-1].DownloadProgress != 100 {
		t.Errorf("its download was seen as %v", steps)
	}
	for i, m := range steps {
		if m.ContainerName != "slow" || m.VmName != vm || i > 0 && m.DownloadProgress <= steps[i-1].DownloadProgress {
			t.Errorf("its download was seen as %v", steps)
			break
		}
	}

	// Another is made while one stands still.
	s.download("stalled", "8000/stall")
	s.localImage()
	if end := s.creation("stalled"); end.Status != ciceronepb.LxdContainerCreatedSignal_DOWNLOAD_TIMED_OUT || end.FailureReason == "" {
		t.Errorf("the stalled one ends with %v", end)
	}
	for name, how := range map[string]struct {
		server string
		status ciceronepb.LxdContainerCreatedSignal_Status
	}{
		"cut":     {"8000/cut", ciceronepb.LxdContainerCreatedSignal_FAILED},
		"spoiled": {"8001/fast", ciceronepb.LxdContainerCreatedSignal_FAILED},
		"dead":    {"9/none", ciceronepb.LxdContainerCreatedSignal_FAILED},
	} {
		s.download(name, how.server)
		if end := s.creation(name); end.Status != how.status || end.FailureReason == "" {
			t.Errorf("the %s one ends with %v, want %v", name, end, how.status)
		}
	}
	// Deleting it ends its creation.
	s.download("cancelled", "8000/stall")
	await(s.ear, func(m *downloading) bool { return m.ContainerName == "cancelled" })
	var del ciceronepb.DeleteLxdContainerResponse
	s.must("DeleteLxdContainer", &ciceronepb.DeleteLxdContainerRequest{VmName: vm, ContainerName: "cancelled"}, &del)
	if end := s.creation("cancelled"); end.Status != ciceronepb.LxdContainerCreatedSignal_CANCELLED {
		t.Errorf("the one that is deleted meanwhile: %v, %v", end, &del)
	}
	s.nothingHalfMade("files", container, "slow")
	if more := all[*created](s.ear); len(more) > 0 || len(s.creations) > 0 {
		t.Errorf("a second end: %v, %v", more, s.creations)
	}
	s.resetDatabase()
	s.tremplinKilled()
}

// localImage makes a container of two files in the VM.
func (s *stack) localImage() {
	s.t.Helper()
	s.vmRoot("mkdir -p /mnt/stateful/transfer; cp /run/served/8000/images/* /mnt/stateful/transfer/")
	if got := s.run("vmc", "container", vm, "files", "/mnt/stateful/transfer/rootfs.squashfs", "/mnt/stateful/transfer/metadata.tar.xz", "--no-shell", "--user", "alice"); !strings.Contains(got, "files runs in "+vm+", its user is alice") {
		s.t.Errorf("a container of files: %q", got)
	}
	if end := s.creation("files"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		s.t.Errorf("a container of files: %v", end)
	}
	if got := s.run("vsh", vm, "files", "--", "id", "-un"); got != "alice" {
		s.t.Errorf("the user of a container of files is %q", got)
	}
	// The metadata of the shipped image lie elsewhere.
	var resp ciceronepb.CreateLxdContainerResponse
	s.must("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: vm, ContainerName: "elsewhere",
		RootfsPath: "rootfs.squashfs", MetadataPath: "/opt/google/cros-containers/image/metadata.tar.xz"}, &resp)
	if end := s.creation("elsewhere"); end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED || !strings.Contains(end.FailureReason, "/mnt/stateful/transfer") {
		s.t.Errorf("a container of files that are not for this: %v, %v", &resp, end)
	}
	s.vmRoot("rm -r /mnt/stateful/transfer")
}

// resetDatabase has Incus find its containers again without its database.
func (s *stack) resetDatabase() {
	s.t.Helper()
	before := s.vmRoot("incus list --format csv --columns n </dev/null")
	all[*ciceronepb.StartLxdProgressSignal](s.ear)
	var lxd ciceronepb.StartLxdResponse
	s.must("StartLxd", &ciceronepb.StartLxdRequest{VmName: vm, ResetLxdDb: true}, &lxd)
	if lxd.Status != ciceronepb.StartLxdResponse_STARTING {
		s.t.Fatalf("StartLxd with reset_lxd_db: %v", &lxd)
	}
	await(s.ear, func(p *ciceronepb.StartLxdProgressSignal) bool {
		return p.Status == ciceronepb.StartLxdProgressSignal_RECOVERING
	})
	if end := await(s.ear, func(p *ciceronepb.StartLxdProgressSignal) bool {
		return p.Status == ciceronepb.StartLxdProgressSignal_STARTED || p.Status == ciceronepb.StartLxdProgressSignal_FAILED
	}); end.Status != ciceronepb.StartLxdProgressSignal_STARTED {
		s.t.Fatalf("StartLxd with reset_lxd_db: %v", end)
	}
	if after := s.vmRoot("incus list --format csv --columns n </dev/null"); after != before {
		s.t.Errorf("with a new database Incus has %q, before %q", after, before)
	}
	all[*ciceronepb.ContainerStartedSignal](s.ear)
	s.startContainer()
	if got := s.shell("id -un"); got != "alice" {
		s.t.Errorf("with a new database the container's user is %q", got)
	}
}

// tremplinKilled kills the manager of containers, whose next one takes over
// what runs.
func (s *stack) tremplinKilled() {
	s.t.Helper()
	all[*ciceronepb.TremplinStartedSignal](s.ear)
	all[*ciceronepb.StartLxdProgressSignal](s.ear)
	all[*ciceronepb.ContainerShutdownSignal](s.ear)
	s.vmRoot("pkill -KILL -x tremplin")
	await[*ciceronepb.TremplinStartedSignal](s.ear, nil)
	await(s.ear, func(p *ciceronepb.StartLxdProgressSignal) bool {
		return p.Status == ciceronepb.StartLxdProgressSignal_STARTED
	})
	if !s.isRunning() {
		s.t.Error("the container went with the manager of containers")
	}
	// Its end is the next one's to tell.
	s.vmRoot("kill -KILL $(incus list " + container + " --format csv --columns p </dev/null)")
	if down := await[*ciceronepb.ContainerShutdownSignal](s.ear, nil); down.ContainerName != container {
		s.t.Errorf("ContainerShutdown: %v", down)
	}
}
