package containers

import (
	"context"
	"os"
	"syscall"

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
