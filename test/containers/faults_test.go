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

// slowPackages makes au-next, and au-slow, in the middle of which dpkg stands
// still while there is a file that a container which starts anew has not.
const slowPackages = `
dpkg --purge --force-all au-slow au-next >/dev/null 2>&1 || true
rm -rf /srv/p /run/stands
for name in au-slow au-next; do
	mkdir -p /srv/p/$name/DEBIAN
	printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: A <a@localhost>\nDescription: slow\n' $name >/srv/p/$name/DEBIAN/control
done
printf '#!/bin/sh\n[ ! -e /run/slow ] || touch /run/stands\nwhile [ -e /run/slow ]; do sleep 0.2; done\n' >/srv/p/au-slow/DEBIAN/postinst
chmod 755 /srv/p/au-slow/DEBIAN/postinst
for name in au-slow au-next; do dpkg-deb --root-owner-group --build /srv/p/$name /srv/$name.deb >/dev/null; done
touch /run/slow
`

// installFile begins to install a file of the container's.
func (s *stack) installFile(path, uuid string) {
	s.t.Helper()
	if resp := s.install(&ciceronepb.InstallLinuxPackageRequest{FilePath: path, CommandUuid: uuid}); resp.Status != ciceronepb.InstallLinuxPackageResponse_STARTED {
		s.t.Fatalf("InstallLinuxPackage of %s: %v", path, resp)
	}
}

// installSlow returns in the middle of an installation of au-slow.
func (s *stack) installSlow(uuid string) {
	s.t.Helper()
	s.installFile("/srv/au-slow.deb", uuid)
	s.root("until test -e /run/stands; do sleep 0.2; done")
}

// installEnd waits for an installation's end.
func (s *stack) installEnd(uuid string, want ciceronepb.InstallLinuxPackageProgressSignal_Status) {
	s.t.Helper()
	end := ended[*installing](s)
	if end.ContainerName != container || end.CommandUuid != uuid || end.Status != want || want == ciceronepb.InstallLinuxPackageProgressSignal_FAILED && end.FailureDetails == "" {
		s.t.Errorf("the installation %s: %v, want %v", uuid, end, want)
	}
}

// endless begins an export that nobody reads of, and returns when it does not
// move any more.
func (s *stack) endless() {
	s.t.Helper()
	_, silent := s.pipe()
	s.move("ExportContainer", container, silent)
	await(s.ear, func(m *exporting) bool { return !final(m) })
}

// exportEnd waits for an export's end.
func (s *stack) exportEnd(want ciceronepb.ExportLxdContainerProgressSignal_Status) {
	s.t.Helper()
	if end := ended[*exporting](s); end.ContainerName != container || end.Status != want || end.FailureReason == "" {
		s.t.Errorf("the export: %v, want %v", end, want)
	}
}

// importNothing begins an import into which nobody writes.
func (s *stack) importNothing(name string) {
	s.t.Helper()
	never, _ := s.pipe()
	s.move("ImportContainer", name, never)
}

// importFails waits for an import's end.
func (s *stack) importFails(name string) {
	s.t.Helper()
	if end := ended[*importing](s); end.ContainerName != name || end.Status != ciceronepb.ImportLxdContainerProgressSignal_FAILED || end.FailureReason == "" {
		s.t.Errorf("the import: %v", end)
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

// What dies in the middle of something long ends that with one signal, or what
// goes on ends as ever, and the next try works.
func TestFaults(t *testing.T) {
	beside(t, &secondLane)
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
	s.downloads("second")
	s.importNothing("fourth")
	s.endless()
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
	s.downloads("third")
	s.endless()
	s.importNothing("fourth")
	s.installSlow("killed")
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
