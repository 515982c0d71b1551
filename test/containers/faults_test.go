package containers

import (
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

type shutdown = ciceronepb.ContainerShutdownSignal

// downloads begins to create a container from a slow server, and returns while
// that goes on.
func (s *stack) downloads(name string) {
	s.t.Helper()
	s.download(name, "8000/slow")
	await(s.ear, func(m *downloading) bool { return m.ContainerName == name })
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
}
