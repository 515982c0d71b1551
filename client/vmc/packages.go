package vmc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
)

// silentTime is how long the agent of a container may say nothing of a package
// after vm_cicerone was restarted in the middle: what it said meanwhile is
// lost, and its last word may have been.
const silentTime = 2 * time.Minute

func (a *app) packageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "package",
		Short:             "Look at, install and remove packages in a container",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	info := &cobra.Command{
		Use:   "info VM [CONTAINER] PACKAGE",
		Short: "Show what a package is",
		Long: "Show what the PACKAGE is: the name of one that a container's sources know, or the absolute\n" +
			"path of a .deb file in the container.",
		Example:           "  vmc package info termina penguin nano",
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: a.completeContainer(),
		RunE:              a.withOptionalContainer(a.packageInfo),
	}
	install := &cobra.Command{
		Use:   "install VM [CONTAINER] PACKAGE",
		Short: "Install a package and show its progress",
		Long: "Install the PACKAGE: a name, a package id of PackageKit's (NAME;VERSION;ARCH;SOURCE), or the\n" +
			"absolute path of a .deb file in the container. The exit code tells how it went. Being\n" +
			"interrupted leaves the installation going on.",
		Example: `  vmc package install termina penguin nano
  vmc package install termina /home/alice/hello.deb`,
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: a.completeContainer(),
		RunE:              a.withOptionalContainer(a.packageInstall),
	}
	remove := &cobra.Command{
		Use:   "remove VM [CONTAINER] APPLICATION",
		Short: "Remove the package that an application belongs to",
		Long: "Remove the package to which the APPLICATION belongs, by its id as \"vmc app list\" shows it,\n" +
			"and show the progress. The exit code tells how it went.",
		Example:           "  vmc package remove termina penguin org.gnome.gedit",
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: a.completeApplication(),
		RunE:              a.withOptionalContainer(a.packageRemove),
	}
	cmd.AddCommand(info, install, remove)
	return cmd
}

// withOptionalContainer is withContainer for VM [CONTAINER] LAST.
func (a *app) withOptionalContainer(body func(ctx context.Context, f *follower, name, last string) error) func(*cobra.Command, []string) error {
	run := a.withContainer(func(ctx context.Context, f *follower, name string, rest []string) error {
		return body(ctx, f, name, rest[0])
	})
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			args = []string{args[0], defaultContainer, args[1]}
		}
		return run(cmd, args)
	}
}

// packageDetails asks for a package by its name or its file.
func (a *app) packageDetails(ctx context.Context, f *follower, name, pkg string) (*ct.LinuxPackageInfoResponse, error) {
	req := &ct.LinuxPackageInfoRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner, PackageName: pkg}
	if strings.HasPrefix(pkg, "/") {
		req.PackageName, req.FilePath = "", pkg
	}
	var resp ct.LinuxPackageInfoResponse
	if err := f.s.call(ctx, "GetLinuxPackageInfo", req, &resp); err != nil {
		return nil, err
	}
	if !resp.Success {
		return nil, failed("look for the package "+pkg, reason(resp.FailureReason))
	}
	return &resp, nil
}

func (a *app) packageInfo(ctx context.Context, f *follower, name, pkg string) error {
	resp, err := a.packageDetails(ctx, f, name, pkg)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(resp)
	}
	t := a.table()
	id := strings.SplitN(resp.PackageId, ";", 4)
	for i, head := range []string{"Name", "Version", "Architecture", "Source"} {
		if i < len(id) {
			t.row(head, id[i])
		}
	}
	t.row("Package id", resp.PackageId)
	t.row("Summary", resp.Summary)
	t.row("License", resp.License)
	t.row("Project", resp.ProjectUrl)
	t.row("Size", bytesWord(resp.Size))
	if err := t.end(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "\n%s\n", strings.TrimRight(harmless(resp.Description), "\n"))
	return err
}

func (a *app) packageInstall(ctx context.Context, f *follower, name, pkg string) error {
	what := "install " + pkg
	r := a.report(pkg)
	defer r.end()
	req := &ct.InstallLinuxPackageRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner, CommandUuid: newUUID()}
	switch {
	case strings.HasPrefix(pkg, "/"):
		req.FilePath = pkg
	case strings.Count(pkg, ";") == 3:
		req.PackageId = pkg
	default:
		r.say("looking for it", -1)
		info, err := a.packageDetails(ctx, f, name, pkg)
		if err != nil {
			return err
		}
		req.PackageId = info.PackageId
	}
	var resp ct.InstallLinuxPackageResponse
	if err := f.s.call(ctx, "InstallLinuxPackage", req, &resp); err != nil {
		return err
	}
	switch resp.Status {
	case ct.InstallLinuxPackageResponse_STARTED:
	case ct.InstallLinuxPackageResponse_INSTALL_ALREADY_ACTIVE:
		return failed(what, errors.New("another package is being installed or removed in "+name+": try again when that is done"))
	default:
		return failed(what, reason(resp.FailureReason))
	}
	r.say("waiting for PackageKit", -1)
	h := &packageWork{a: a, f: f, container: name, what: what}
	err := f.await(ctx, h.work(func(m proto.Message) (bool, error) {
		s, ok := m.(*ct.InstallLinuxPackageProgressSignal)
		if !ok || s.ContainerName != name || s.CommandUuid != req.CommandUuid {
			return false, nil
		}
		h.heard()
		switch s.Status {
		case ct.InstallLinuxPackageProgressSignal_SUCCEEDED:
			return true, nil
		case ct.InstallLinuxPackageProgressSignal_DOWNLOADING:
			r.say("downloading", int(s.ProgressPercent))
		case ct.InstallLinuxPackageProgressSignal_INSTALLING:
			r.say("installing", int(s.ProgressPercent))
		default:
			return false, failed(what, reason(s.FailureDetails))
		}
		return false, nil
	}))
	r.end()
	if err != nil {
		return err
	}
	return a.done("%s is installed", pkg)
}

func (a *app) packageRemove(ctx context.Context, f *follower, name, id string) error {
	what := "remove the package of " + id
	r := a.report(id)
	defer r.end()
	var resp ct.UninstallPackageOwningFileResponse
	err := f.s.call(ctx, "UninstallPackageOwningFile", &ct.UninstallPackageOwningFileRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner, DesktopFileId: id}, &resp)
	if err != nil {
		return err
	}
	switch resp.Status {
	case ct.UninstallPackageOwningFileResponse_STARTED:
	case ct.UninstallPackageOwningFileResponse_BLOCKING_OPERATION_IN_PROGRESS:
		return failed(what, errors.New("another package is being installed or removed in "+name+": try again when that is done"))
	default:
		return failed(what, reason(resp.FailureReason))
	}
	r.say("waiting for PackageKit", -1)
	h := &packageWork{a: a, f: f, container: name, what: what}
	err = f.await(ctx, h.work(func(m proto.Message) (bool, error) {
		s, ok := m.(*ct.UninstallPackageProgressSignal)
		if !ok || s.ContainerName != name {
			return false, nil
		}
		h.heard()
		switch s.Status {
		case ct.UninstallPackageProgressSignal_SUCCEEDED:
			return true, nil
		case ct.UninstallPackageProgressSignal_UNINSTALLING:
			r.say("removing", int(s.ProgressPercent))
			return false, nil
		}
		return false, failed(what, reason(s.FailureDetails))
	}))
	r.end()
	if err != nil {
		return err
	}
	return a.done("the package of %s is removed", id)
}

// A packageWork is a package's way in or out, which the container's agent
// tells of. There is no asking for it: it is lost with the container, and after
// a restart of vm_cicerone when the agent keeps silent.
type packageWork struct {
	a               *app
	f               *follower
	container, what string
	silent          time.Time // since when; zero while nothing was lost
	down            int       // how often in turn the container was found not to run
}

// downOften is how often a container has to be found not to run: vm_cicerone
// may have been restarted, and the agent be on its way to it.
const downOften = 3

func (p *packageWork) heard() { p.silent = time.Time{} }

func (p *packageWork) work(hear func(proto.Message) (bool, error)) work {
	return work{
		what: p.what,
		hear: func(_ string, m proto.Message) (bool, error) {
			if s, ok := m.(*ct.ContainerShutdownSignal); ok && s.ContainerName == p.container {
				return false, failed(p.what, errors.New("the container has stopped in the middle"))
			}
			return hear(m)
		},
		look: func(ctx context.Context, again bool) (bool, error) {
			up, err := p.f.running(ctx, p.a.owner, p.container)
			if err != nil {
				return false, err
			}
			if again && p.silent.IsZero() {
				p.silent = time.Now()
			}
			if p.down++; up {
				p.down = 0
			}
			switch {
			case p.down >= downOften:
				return false, errors.New("the container has stopped in the middle")
			case !p.silent.IsZero() && time.Since(p.silent) > silentTime:
				return false, fmt.Errorf("vm_cicerone was restarted in the middle, and nothing was heard of it for %v since; how it ended is not known", silentTime)
			}
			return false, nil
		},
	}
}

// newUUID is a random UUID.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
