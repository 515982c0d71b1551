package containers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// archive makes packages in the container, in a directory that serveArchive
// serves to its apt: au-top, which needs au-leaf and has an application with an
// icon; au-unsat, which needs what nobody has; au-broken, whose installation
// fails; and a file that is no package.
const archive = `
mkdir -p /srv/archive /root/build && cd /root/build
make() { # name version depends
	mkdir -p $1/DEBIAN $1/usr/share/$1 $1/usr/share/applications $1/usr/share/icons/hicolor/48x48/apps
	head -c 2000000 /dev/urandom >$1/usr/share/$1/data
	printf '\211PNG\r\n\032\nof %s' $1 >$1/usr/share/icons/hicolor/48x48/apps/$1.png
	cat >$1/DEBIAN/control <<-END
	Package: $1
	Version: $2
	Architecture: all
	Maintainer: Somebody <somebody@example.org>
	Homepage: https://example.org/$1
	Section: utils
	Installed-Size: 300
	Depends: $3
	Description: the $1
	 Its long description.
	END
	printf '[Desktop Entry]\nType=Application\nName=The %s\nIcon=%s\nExec=sh -c "touch /tmp/%s.ran"\n' $1 $1 $1 >$1/usr/share/applications/$1.desktop
	[ $1 != au-broken ] || printf '#!/bin/sh\nexit 1\n' >$1/DEBIAN/postinst
	chmod -R u=rwX,go=rX $1; [ ! -e $1/DEBIAN/postinst ] || chmod 755 $1/DEBIAN/postinst
	dpkg-deb --build $1 /srv/archive/$1.deb >/dev/null
}
make au-leaf 1.0 base-files
make au-top 2.0 au-leaf
make au-unsat 1.0 'nobody-has-this (>= 3)'
make au-broken 1.0 base-files
head -c 5000 /dev/urandom >/srv/archive/junk.deb
cd /srv/archive
for p in au-leaf au-top au-unsat; do
	dpkg-deb -f $p.deb
	printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' $p $(stat -c %s $p.deb) $(sha256sum $p.deb | cut -d' ' -f1)
done >Packages
`

// serveArchive has the tests' server in the VM serve the archive, slowly, and
// the container's apt use it.
func (s *stack) serveArchive() {
	s.t.Helper()
	s.testServer()
	s.root(archive)
	s.vmRoot("setsid /run/testserver --listen :8002 --rate 1024 --dir " + containerRoot + "/srv/archive </dev/null >/run/archive.log 2>&1 &")
	s.root(`
gateway=$(ip route show default | awk '{ print $3 }')
until (exec 3<>/dev/tcp/$gateway/8002) 2>/dev/null; do sleep 0.1; done
echo "deb [trusted=yes] http://$gateway:8002/slow ./" >/etc/apt/sources.list
apt-get update -qq
`)
}

type (
	installing   = ciceronepb.InstallLinuxPackageProgressSignal
	uninstalling = ciceronepb.UninstallPackageProgressSignal
)

// install begins an installation.
func (s *stack) install(req *ciceronepb.InstallLinuxPackageRequest) *ciceronepb.InstallLinuxPackageResponse {
	s.t.Helper()
	req.VmName, req.ContainerName = vm, container
	var resp ciceronepb.InstallLinuxPackageResponse
	s.must("InstallLinuxPackage", req, &resp)
	return &resp
}

// installed follows an installation to its end, and the rules for what comes.
func (s *stack) installed(uuid string) (end *installing, phases string) {
	s.t.Helper()
	var last *installing
	for {
		m := await[*installing](s.ear, nil)
		if m.VmName != vm || m.ContainerName != container || m.CommandUuid != uuid {
			s.t.Errorf("progress of something else: %v", m)
		}
		if m.Status == ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED || m.Status == ciceronepb.InstallLinuxPackageProgressSignal_FAILED {
			return m, phases
		}
		switch {
		case last == nil || last.Status < m.Status:
			phases += m.Status.String() + " "
		case last.Status > m.Status || last.ProgressPercent > m.ProgressPercent || m.ProgressPercent > 100:
			s.t.Errorf("progress goes back: %v after %v", m, last)
		}
		last = m
	}
}

func (s *stack) packageInfo(req *ciceronepb.LinuxPackageInfoRequest) *ciceronepb.LinuxPackageInfoResponse {
	s.t.Helper()
	req.VmName, req.ContainerName = vm, container
	var resp ciceronepb.LinuxPackageInfoResponse
	s.must("GetLinuxPackageInfo", req, &resp)
	return &resp
}

// Packages by the container's real PackageKit, from an archive that the test
// makes, and with them an application on the desktop.
func (s *stack) packageKit(d *desktop) {
	s.t.Helper()
	t := s.t
	s.serveArchive()

	byFile := s.packageInfo(&ciceronepb.LinuxPackageInfoRequest{FilePath: "/srv/archive/au-top.deb"})
	byName := s.packageInfo(&ciceronepb.LinuxPackageInfoRequest{PackageName: "au-top"})
	for _, info := range []*ciceronepb.LinuxPackageInfoResponse{byFile, byName} {
		if !info.Success || !strings.HasPrefix(info.PackageId, "au-top;2.0;all;") || info.Summary != "the au-top" ||
			info.Description != "Its long description." || info.ProjectUrl != "https://example.org/au-top" || info.Size == 0 || info.License == "" {
			t.Errorf("GetLinuxPackageInfo: %v", info)
		}
	}
	for _, req := range []*ciceronepb.LinuxPackageInfoRequest{
		{PackageName: "nobody-has-this"}, {FilePath: "/srv/archive/junk.deb"}, {FilePath: "/srv/archive/none.deb"}, {},
	} {
		if info := s.packageInfo(req); info.Success || info.FailureReason == "" {
			t.Errorf("GetLinuxPackageInfo(%v): %v", req, info)
		}
	}

	// With what it depends on; and one at a time.
	resp := s.install(&ciceronepb.InstallLinuxPackageRequest{PackageId: byName.PackageId, CommandUuid: "first"})
	if resp.Status != ciceronepb.InstallLinuxPackageResponse_STARTED {
		t.Fatalf("InstallLinuxPackage: %v", resp)
	}
	if resp := s.install(&ciceronepb.InstallLinuxPackageRequest{PackageId: byName.PackageId, CommandUuid: "second"}); resp.Status != ciceronepb.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE {
		t.Errorf("a second InstallLinuxPackage: %v", resp)
	}
	end, phases := s.installed("first")
	if end.Status != ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED || phases != "DOWNLOADING INSTALLING " {
		t.Errorf("the installation: %q %v", phases, end)
	}
	if got := s.shell("dpkg-query -W -f '${Package} ${db:Status-Status}\\n' au-top au-leaf"); got != "au-leaf installed\nau-top installed" {
		t.Errorf("installed: %q", got)
	}

	s.topApplication(d)

	// Away again, with what came along.
	var gone ciceronepb.UninstallPackageOwningFileResponse
	s.must("UninstallPackageOwningFile", &ciceronepb.UninstallPackageOwningFileRequest{VmName: vm, ContainerName: container, DesktopFileId: "au-top"}, &gone)
	if gone.Status != ciceronepb.UninstallPackageOwningFileResponse_STARTED {
		t.Fatalf("UninstallPackageOwningFile: %v", &gone)
	}
	if m := await(s.ear, func(m *uninstalling) bool { return m.Status != ciceronepb.UninstallPackageProgressSignal_UNINSTALLING }); m.Status != ciceronepb.UninstallPackageProgressSignal_SUCCEEDED {
		t.Errorf("the removal: %v", m)
	}
	d.list("au-top", false)
	if got := s.shell("ls -d /usr/share/au-* 2>/dev/null || true"); got != "" {
		t.Errorf("left: %s", got)
	}
	s.must("UninstallPackageOwningFile", &ciceronepb.UninstallPackageOwningFileRequest{VmName: vm, ContainerName: container, DesktopFileId: "au-top"}, &gone)
	if gone.Status != ciceronepb.UninstallPackageOwningFileResponse_FAILED || gone.FailureReason == "" {
		t.Errorf("a second UninstallPackageOwningFile: %v", &gone)
	}

	// What does not work says why, once, and the next one may try.
	for file, want := range map[string]string{"au-unsat.deb": "nobody-has-this", "junk.deb": "", "au-broken.deb": "post-installation"} {
		resp := s.install(&ciceronepb.InstallLinuxPackageRequest{FilePath: "/srv/archive/" + file, CommandUuid: file})
		why := resp.FailureReason
		if resp.Status == ciceronepb.InstallLinuxPackageResponse_STARTED {
			end, _ := s.installed(file)
			if end.Status != ciceronepb.InstallLinuxPackageProgressSignal_FAILED {
				t.Errorf("%s is installed: %v", file, end)
			}
			why = end.FailureDetails
		}
		if why == "" || !strings.Contains(why, want) {
			t.Errorf("%s fails with %q, want %q", file, why, want)
		}
		if file == "au-broken.deb" {
			s.root("dpkg --purge --force-all au-broken >/dev/null 2>&1")
		}
	}

	// PackageKit killed, and dpkg with it, in the middle of a package; what
	// that leaves is in nobody's way.
	s.root(slowPackages)
	s.installSlow("killed")
	s.root("systemctl kill --signal=KILL packagekit.service; rm /run/slow")
	if end, _ = s.installed("killed"); end.Status != ciceronepb.InstallLinuxPackageProgressSignal_FAILED {
		t.Errorf("an installation of which PackageKit is killed: %v", end)
	}
	resp = s.install(&ciceronepb.InstallLinuxPackageRequest{FilePath: "/srv/archive/au-top.deb", CommandUuid: "after"})
	if resp.Status != ciceronepb.InstallLinuxPackageResponse_STARTED {
		t.Fatalf("InstallLinuxPackage after PackageKit was killed: %v", resp)
	}
	if end, _ := s.installed("after"); end.Status != ciceronepb.InstallLinuxPackageProgressSignal_SUCCEEDED {
		t.Errorf("the installation after PackageKit was killed: %v", end)
	}
	d.list("au-top", true)
	s.run("vmc", "package", "remove", vm, container, "au-top")
	d.list("au-top", false)
	if got := s.shell("dpkg-query -W -f '${db:Status-Status}' au-slow"); got != "installed" {
		t.Errorf("the package in the middle of which dpkg was killed is %q", got)
	}
}

// topApplication looks at the application of a package that was just installed:
// as a desktop, and by vmc.
func (s *stack) topApplication(d *desktop) {
	s.t.Helper()
	t := s.t
	app := d.list("au-top", true)
	for app.GetPackageId() == "" { // while packages are installed it may take a while to know it
		app = d.list("au-top", true)
	}
	if app.GetName().GetValues()[0].GetValue() != "The au-top" {
		t.Errorf("the application is %v", app)
	}
	if got := s.run("vmc", "app", "list", vm, container); !strings.Contains(got, "au-top") || !strings.Contains(got, "The au-top") {
		t.Errorf("vmc app list: %s", got)
	}
	file := filepath.Join(s.Home(testbed.Alice), "au-top.png")
	s.run("vmc", "app", "icon", vm, container, "au-top", "--output", file)
	if icon, err := os.ReadFile(file); err != nil || string(icon) != "\x89PNG\r\n\x1a\nof au-top" {
		t.Errorf("vmc app icon: %q, %v", icon, err)
	}
	s.run("vmc", "app", "launch", vm, container, "au-top")
	s.shell("until test -e /tmp/au-top.ran; do sleep 0.2; done")
}

// What else the agent does, and its end and return.
func (s *stack) agent() {
	s.t.Helper()
	t := s.t
	var info ciceronepb.GetGarconSessionInfoResponse
	s.must("GetGarconSessionInfo", &ciceronepb.GetGarconSessionInfoRequest{VmName: vm, ContainerName: container}, &info)
	if info.Status != ciceronepb.GetGarconSessionInfoResponse_SUCCEEDED || info.ContainerUsername != "alice" ||
		info.ContainerHomedir != "/home/alice" || info.SftpVsockPort < 10000 || info.SftpVsockPort > 19999 {
		t.Errorf("GetGarconSessionInfo: %v", &info)
	}
	if got := s.shell("id -un; pwd; echo $XDG_RUNTIME_DIR; systemctl --user show -P Type -P ActiveState cros-garcon"); got != "alice\n/home/alice\n/run/user/1000\nnotify\nactive" {
		t.Errorf("a shell says %q", got)
	}

	s.shell("mkdir Documents")
	var added ciceronepb.AddFileWatchResponse
	s.must("AddFileWatch", &ciceronepb.AddFileWatchRequest{VmName: vm, ContainerName: container, Path: "Documents"}, &added)
	if added.Status != ciceronepb.AddFileWatchResponse_SUCCEEDED {
		t.Fatalf("AddFileWatch: %v", &added)
	}
	s.shell("touch Documents/file")
	if m := await[*ciceronepb.FileWatchTriggeredSignal](s.ear, nil); m.Path != "Documents" || m.VmName != vm || m.ContainerName != container {
		t.Errorf("FileWatchTriggered: %v", m)
	}

	var book ciceronepb.ApplyAnsiblePlaybookResponse
	s.must("ApplyAnsiblePlaybook", &ciceronepb.ApplyAnsiblePlaybookRequest{VmName: vm, ContainerName: container, Playbook: "- hosts: all\n"}, &book)
	if book.Status != ciceronepb.ApplyAnsiblePlaybookResponse_FAILED || !strings.Contains(book.FailureReason, "ansible-core") {
		t.Errorf("ApplyAnsiblePlaybook without ansible: %v", &book)
	}

	// The agent is killed by one of its shells: systemd has it back, the shell
	// lives on.
	before := s.shell("systemctl --user show -P MainPID cros-garcon")
	got := s.shell(fmt.Sprintf("kill -KILL %s; until [ $(systemctl --user show -P MainPID cros-garcon) != %[1]s ] && systemctl --user is-active -q cros-garcon; do sleep 0.2; done; echo there", before))
	if got != "there" {
		t.Errorf("the shell that outlives the agent says %q", got)
	}
	await[*ciceronepb.ContainerStartedSignal](s.ear, nil)
	if got := s.shell("echo again"); got != "again" {
		t.Errorf("a shell after that says %q", got)
	}
}
