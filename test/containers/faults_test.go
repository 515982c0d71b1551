package containers

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

type (
	exporting = ciceronepb.ExportLxdContainerProgressSignal
	shutdown  = ciceronepb.ContainerShutdownSignal
	stopped   = conciergepb.VmStoppedSignal
)

// downloads begins to create a container from a slow server, and returns while
// that goes on.
func (s *stack) downloads(name string) {
	s.t.Helper()
	s.download(name, "8000/slow")
	await(s.ear, func(m *downloading) bool { return m.ContainerName == name })
}

// killVM ends the VM's hypervisor without notice.
func (s *stack) killVM() {
	s.t.Helper()
	var info conciergepb.GetVmInfoResponse
	s.concierged("GetVmInfo", &conciergepb.GetVmInfoRequest{Name: vm}, &info)
	if info.VmInfo.GetPid() <= 1 {
		s.t.Fatalf("GetVmInfo: %v", &info)
	}
	if err := syscall.Kill(int(info.VmInfo.Pid), syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	await[*stopped](s.ear, nil)
}

// startExport begins to write the container into a file.
func (s *stack) startExport() (ended <-chan struct{}) {
	s.t.Helper()
	c := s.Command(testbed.Alice, "vmc", "export-container", vm, container, filepath.Join(s.Home(testbed.Alice), s.t.Name()+".tar.gz"), "--force")
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Wait()
	}()
	s.t.Cleanup(func() {
		c.Process.Kill()
		<-done
	})
	await[*exporting](s.ear, nil)
	return done
}

// What dies in the middle of something long ends that with one signal, and the
// next try works.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)

	// A container that switches itself off.
	s.root("systemctl poweroff </dev/null")
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown: %v", down)
	}
	if s.isRunning() {
		t.Error("it runs after ContainerShutdown")
	}
	// Its agent says that first; the system takes a moment longer to go down.
	s.vmRoot("until [ \"$(incus list --format csv --columns s </dev/null 2>/dev/null)\" = STOPPED ]; do sleep 0.2; done")
	s.startContainer()

	// Incus, while it makes a container.
	s.serve()
	s.downloads("second")
	s.vmRoot("pkill -KILL -x incusd")
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED || end.FailureReason == "" {
		t.Errorf("a creation whose Incus was killed: %v", end)
	}
	// vm_cicerone, while the next one is made: who comes back tells the end.
	s.downloads("second")
	kill(s.cicerone)
	s.startCicerone()
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("a creation while vm_cicerone was killed: %v", end)
	}
	if !s.isRunning() {
		t.Error("vm_cicerone does not know the container again")
	}
	if got := s.shell("id -un"); got != "alice" {
		t.Errorf("a shell after vm_cicerone was killed: %q", got)
	}
	s.nothingHalfMade(container, "second")

	// vm_concierge, with no effect on containers.
	kill(s.concierge)
	s.startConcierge()
	if got := s.shell("id -un"); got != "alice" {
		t.Errorf("a shell after vm_concierge was killed: %q", got)
	}

	// The VM, in the middle of an export and of a creation at once.
	s.downloads("third")
	ended := s.startExport()
	s.killVM()
	if end := await(s.ear, func(m *exporting) bool {
		return m.Status != ciceronepb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING
	}); end.Status != ciceronepb.ExportLxdContainerProgressSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the export of a VM that was killed: %v", end)
	}
	if end := s.creation("third"); end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED {
		t.Errorf("the creation in a VM that was killed: %v", end)
	}
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown of a VM that was killed: %v", down)
	}
	<-ended
	if s.isRunning() {
		t.Error("the container runs in a VM that is gone")
	}
	s.startVM()
	s.startContainer()
	s.serve()
	s.download("third", "8000/fast")
	if end := s.creation("third"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("the creation after all: %v", end)
	}
	s.nothingHalfMade(container, "second", "third")
	s.stopVM()
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown of a VM that was stopped: %v", down)
	}
	for _, more := range [][]*shutdown{all[*shutdown](s.ear)} {
		if len(more) > 0 {
			t.Errorf("more of ContainerShutdown: %v", more)
		}
	}
	if more := all[*created](s.ear); len(more) > 0 {
		t.Errorf("more of LxdContainerCreated: %v", more)
	}
}
