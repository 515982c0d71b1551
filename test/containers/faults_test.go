package containers

import (
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// What dies in the middle of something long ends that with one signal, or what
// goes on ends as ever, and the next try works.
func TestFaults(t *testing.T) {
	beside(t, 420)
	s := preparedStack(t)
	s.serve()
	s.agentAndContainerDie()
	s.incusDies()
	s.daemonsDie()
	s.killedInTheMiddle()
	s.afterwards()

	s.stopVM()
	s.hasShutDown()
	await[*stopped](s.ear, nil)
	if more := all[*shutdown](s.ear); len(more) > 0 {
		t.Errorf("more of ContainerShutdown: %v", more)
	}
	s.endedOnce()
}

// agentAndContainerDie: the agent by a signal, the container by its own root, in
// order and at once.
func (s *stack) agentAndContainerDie() {
	s.t.Helper()
	t := s.t
	s.root(slowPackages)
	s.installSlow("agent")
	s.root("pkill -KILL -x garcon")
	s.installEnd("agent", ciceronepb.InstallLinuxPackageProgressSignal_FAILED)
	await[*ciceronepb.ContainerStartedSignal](s.ear, nil)
	// PackageKit has the first in hand still: this one waits for it.
	s.installFile("/srv/au-next.deb", "container")
	s.root("setsid systemctl poweroff -ff </dev/null >/dev/null 2>&1 & disown")
	s.installEnd("container", ciceronepb.InstallLinuxPackageProgressSignal_FAILED)
	s.hasShutDown()
	s.startContainer()
	s.alive("its start")

	// One that switches itself off is started at once. Its agent goes first, and
	// the system takes a while longer.
	s.root("systemctl poweroff </dev/null")
	s.hasShutDown()
	if s.isRunning() {
		t.Error("it runs after ContainerShutdown")
	}
	s.startContainer()
	s.alive("its second start")
}

func (s *stack) hasShutDown() {
	s.t.Helper()
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		s.t.Errorf("ContainerShutdown: %v", down)
	}
}

// incusDies while it makes containers and gives one away. What containers run in
// has its name too, and outlives it.
func (s *stack) incusDies() {
	s.t.Helper()
	t := s.t
	s.importNothing("fourth")
	s.endless()
	s.downloads("second") // the only one of these that ends by itself
	s.vmRoot(`pkill -KILL -x -P "$(pgrep -x tremplin)" incusd`)
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED || end.FailureReason == "" {
		t.Errorf("a creation whose Incus was killed: %v", end)
	}
	s.importFails("fourth")
	// The export has all from the disk, and takes its snapshot away when Incus is
	// back.
	var cancel ciceronepb.CancelExportLxdContainerResponse
	s.must("CancelExportLxdContainer", &ciceronepb.CancelExportLxdContainerRequest{VmName: vm, InProgressContainerName: container}, &cancel)
	if cancel.Status != ciceronepb.CancelExportLxdContainerResponse_CANCEL_QUEUED {
		t.Errorf("CancelExportLxdContainer: %v", &cancel)
	}
	s.exportEnd(ciceronepb.ExportLxdContainerProgressSignal_CANCELLED)
	s.alive("Incus' death")
	s.endedOnce()
}

// daemonsDie: who comes back tells the ends, and knows the container that runs.
// vm_concierge has no part in it.
func (s *stack) daemonsDie() {
	s.t.Helper()
	t := s.t
	s.root(slowPackages)
	s.installSlow("daemons")
	s.endless()
	s.downloads("second")
	kill(s.cicerone)
	s.startCicerone()
	kill(s.concierge)
	s.startConcierge()
	s.exportEnd(ciceronepb.ExportLxdContainerProgressSignal_FAILED)
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("a creation while vm_cicerone was killed: %v", end)
	}
	s.root("rm /run/slow")
	s.installEnd("daemons", ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED)
	s.alive("the daemons' death")
	s.endedOnce()
}

// killedInTheMiddle kills the VM while everything long goes on in it.
func (s *stack) killedInTheMiddle() {
	s.t.Helper()
	t := s.t
	s.root(slowPackages)
	s.endless()
	s.importNothing("fourth")
	s.installSlow("killed")
	s.vmRoot("sync")
	s.downloads("third") // the only one of these that ends by itself
	all[*starting](s.ear)
	var resp ciceronepb.StartLxdContainerResponse
	s.must("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: vm, ContainerName: "second", Async: true}, &resp)
	if resp.Status != ciceronepb.StartLxdContainerResponse_STARTING {
		t.Errorf("StartLxdContainer: %v", &resp)
	}
	s.killVM()

	if end := ended[*created](s); end.ContainerName != "third" || end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the creation: %v", end)
	}
	s.exportEnd(ciceronepb.ExportLxdContainerProgressSignal_FAILED)
	s.importFails("fourth")
	s.installEnd("killed", ciceronepb.InstallLinuxPackageProgressSignal_FAILED)
	if end := ended[*starting](s); end.ContainerName != "second" || end.Status != ciceronepb.LxdContainerStartingSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the start: %v", end)
	}
	s.hasShutDown()
	if s.isRunning() {
		t.Error("the container runs in a VM that is gone")
	}
	onlyOnce[*starting](s)
	s.endedOnce()
}

// afterwards tries everything again that the VM's death has cut short.
func (s *stack) afterwards() {
	s.t.Helper()
	t := s.t
	s.startVM()
	// Its manager of containers is killed with it once more.
	all[*ciceronepb.StartLxdProgressSignal](s.ear)
	var lxd ciceronepb.StartLxdResponse
	s.must("StartLxd", &ciceronepb.StartLxdRequest{VmName: vm}, &lxd)
	if lxd.Status != ciceronepb.StartLxdResponse_STARTING {
		t.Errorf("StartLxd: %v", &lxd)
	}
	s.killVM()
	if end := await(s.ear, func(p *ciceronepb.StartLxdProgressSignal) bool {
		return p.Status == ciceronepb.StartLxdProgressSignal_STARTED || p.Status == ciceronepb.StartLxdProgressSignal_FAILED
	}); end.Status != ciceronepb.StartLxdProgressSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the start of the manager of containers: %v", end)
	}
	s.startVM()
	// Its agent has reported again to each daemon that was started anew.
	all[*ciceronepb.ContainerStartedSignal](s.ear)
	s.startContainer()
	s.installFile("/srv/au-next.deb", "again")
	s.installEnd("again", ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED)
	// In the middle of which the VM was killed.
	if got := s.shell("dpkg-query -W -f '${db:Status-Status}' au-slow"); got != "installed" {
		t.Errorf("the package that was cut short is %q", got)
	}
	var made ciceronepb.CreateLxdContainerResponse
	s.must("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: vm, ContainerName: "third"}, &made)
	if end := s.creation("third"); made.Status != ciceronepb.CreateLxdContainerResponse_CREATING || end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("the creation after all: %v, %v", &made, end)
	}
	var resp ciceronepb.StartLxdContainerResponse
	s.must("StartLxdContainer", &ciceronepb.StartLxdContainerRequest{VmName: vm, ContainerName: "second"}, &resp)
	if resp.Status != ciceronepb.StartLxdContainerResponse_STARTED {
		t.Errorf("the start after all: %v", &resp)
	}
	// What goes out comes in again.
	s.keep()
	s.exportInVM()
	s.importInVM("third", "p.tar.gz")
	// The image that came with the import goes when nobody needs it any more.
	s.vmRoot(`until [ "$(incus image list --format csv </dev/null 2>/dev/null | wc -l)" = 1 ]; do sleep 0.5; done`)
	s.nothingHalfMade(container, "second", "third")
	s.alive("all of it")
}
