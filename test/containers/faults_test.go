package containers

import (
	"context"
	"os"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

type (
	shutdown  = ciceronepb.ContainerShutdownSignal
	exporting = ciceronepb.ExportLxdContainerProgressSignal
	importing = ciceronepb.ImportLxdContainerProgressSignal
	starting  = ciceronepb.LxdContainerStartingSignal
	stopped   = conciergepb.VmStoppedSignal
)

// final tells whether a signal is the last of its operation.
func final(m proto.Message) bool {
	switch m := m.(type) {
	case *created:
		return true
	case *starting:
		return m.Status != ciceronepb.LxdContainerStartingSignal_STARTING
	case *installing:
		return m.Status == ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED || m.Status == ciceronepb.InstallLinuxPackageProgressSignal_FAILED
	case *exporting:
		s := m.Status
		return s == ciceronepb.ExportLxdContainerProgressSignal_DONE || s == ciceronepb.ExportLxdContainerProgressSignal_FAILED || s == ciceronepb.ExportLxdContainerProgressSignal_CANCELLED
	case *importing:
		return m.Status != ciceronepb.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD && m.Status != ciceronepb.ImportLxdContainerProgressSignal_IMPORTING_UNPACK
	}
	return false
}

// ended waits for the end of an operation.
func ended[M proto.Message](s *stack) M {
	s.t.Helper()
	return await(s.ear, func(m M) bool { return final(m) })
}

// onlyOnce checks that nothing has ended a second time.
func onlyOnce[M proto.Message](s *stack) {
	s.t.Helper()
	for _, m := range all[M](s.ear) {
		if final(m) {
			s.t.Errorf("a second end: %T %v", m, m)
		}
	}
}

// endedOnce is onlyOnce for all but starts.
func (s *stack) endedOnce() {
	s.t.Helper()
	onlyOnce[*created](s)
	onlyOnce[*installing](s)
	onlyOnce[*exporting](s)
	onlyOnce[*importing](s)
}

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
	if end := await[*stopped](s.ear, nil); end.Name != vm || end.Reason != conciergepb.VmStopReason_VM_EXITED {
		s.t.Errorf("VmStopped: %v", end)
	}
}

// move begins an export or import through a file of the test's.
func (s *stack) move(method, name string, f *os.File) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	call := s.conn.Object(dbus.CiceroneName, dbus.CiceronePath).CallWithContext(ctx, dbus.Cicerone1Name+"."+method, 0, vm, "", name, godbus.UnixFD(f.Fd()))
	if call.Err != nil {
		s.t.Fatalf("%s: %v", method, call.Err)
	}
}

// pipe is one that nobody else has.
func (s *stack) pipe() (r, w *os.File) {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// slowPackage makes a package whose installation stands still until the
// container is started anew.
const slowPackage = `
mkdir -p /srv/p/DEBIAN
printf 'Package: au-slow\nVersion: 1\nArchitecture: all\nMaintainer: A <a@localhost>\nDescription: slow\n' >/srv/p/DEBIAN/control
dpkg-deb --root-owner-group --build /srv/p /srv/au-slow.deb >/dev/null
cat >/etc/apt/apt.conf.d/slow <<'END'
DPkg::Pre-Install-Pkgs {"test ! -e /run/slow || { touch /run/stands; sleep 1000; }";};
END
touch /run/slow
`

func (s *stack) installSlow(uuid string) {
	s.t.Helper()
	if resp := s.install(&ciceronepb.InstallLinuxPackageRequest{FilePath: "/srv/au-slow.deb", CommandUuid: uuid}); resp.Status != ciceronepb.InstallLinuxPackageResponse_STARTED {
		s.t.Fatalf("InstallLinuxPackage: %v", resp)
	}
}

// alive checks that the container runs, and never stopped.
func (s *stack) alive(after string) {
	s.t.Helper()
	if got := s.shell("id -un"); got != "alice" {
		s.t.Errorf("a shell after %s: %q", after, got)
	}
	if !s.isRunning() {
		s.t.Errorf("the container does not run after %s", after)
	}
	if down := all[*shutdown](s.ear); len(down) > 0 {
		s.t.Errorf("ContainerShutdown by %s: %v", after, down)
	}
}

// What dies in the middle of something long ends that with one signal, and the
// next try works.
func TestFaults(t *testing.T) {
	beside(t, &secondLane)
	s := preparedStack(t)

	// A container that switches itself off is started at once. Its agent goes
	// first, and the system takes a while longer.
	s.root("systemctl poweroff </dev/null")
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown: %v", down)
	}
	if s.isRunning() {
		t.Error("it runs after ContainerShutdown")
	}
	s.startContainer()
	s.alive("its start")

	// Incus, while it makes a container. What containers run in has its name
	// too, and outlives it.
	s.serve()
	s.downloads("second")
	s.vmRoot(`pkill -KILL -x -P "$(pgrep -x tremplin)" incusd`)
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_FAILED || end.FailureReason == "" {
		t.Errorf("a creation whose Incus was killed: %v", end)
	}
	s.alive("Incus' death")
	// vm_cicerone, while the next one is made: who comes back tells the end, and
	// knows the container that runs. vm_concierge has no part in it.
	s.downloads("second")
	kill(s.cicerone)
	s.startCicerone()
	kill(s.concierge)
	s.startConcierge()
	if end := s.creation("second"); end.Status != ciceronepb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("a creation while vm_cicerone was killed: %v", end)
	}
	s.alive("the daemons' death")

	s.killedInTheMiddle()
	s.afterwards()

	s.stopVM()
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown of a VM that was stopped: %v", down)
	}
	await[*stopped](s.ear, nil)
	if more := all[*shutdown](s.ear); len(more) > 0 {
		t.Errorf("more of ContainerShutdown: %v", more)
	}
	s.endedOnce()
}

// killedInTheMiddle kills the VM while everything long goes on in it.
func (s *stack) killedInTheMiddle() {
	s.t.Helper()
	t := s.t
	s.root(slowPackage)
	s.downloads("third")
	_, silent := s.pipe() // nobody reads of it
	s.move("ExportContainer", container, silent)
	never, _ := s.pipe() // nobody writes into it
	s.move("ImportContainer", "fourth", never)
	s.installSlow("killed")
	s.root("until test -e /run/stands; do sleep 0.2; done")
	s.vmRoot("sync")
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
	if end := ended[*exporting](s); end.ContainerName != container || end.Status != ciceronepb.ExportLxdContainerProgressSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the export: %v", end)
	}
	if end := ended[*importing](s); end.ContainerName != "fourth" || end.Status != ciceronepb.ImportLxdContainerProgressSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the import: %v", end)
	}
	if end := ended[*installing](s); end.ContainerName != container || end.CommandUuid != "killed" || end.Status != ciceronepb.InstallLinuxPackageProgressSignal_FAILED || end.FailureDetails == "" {
		t.Errorf("the installation: %v", end)
	}
	if end := ended[*starting](s); end.ContainerName != "second" || end.Status != ciceronepb.LxdContainerStartingSignal_FAILED || end.FailureReason == "" {
		t.Errorf("the start: %v", end)
	}
	if down := await[*shutdown](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown: %v", down)
	}
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
	// Its agent has reported again to each daemon that was started anew.
	all[*ciceronepb.ContainerStartedSignal](s.ear)
	s.startContainer()
	s.installSlow("again")
	if end := ended[*installing](s); end.CommandUuid != "again" || end.Status != ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED {
		t.Errorf("the installation after all: %v", end)
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
