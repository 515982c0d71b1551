package vmc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// defaultContainer is the container that is meant where none is named.
const defaultContainer = "penguin"

// containerOptions are the flags and arguments of container.
type containerOptions struct {
	vm, name         string
	server, alias    string
	rootfs, meta     string
	user             string
	privilege        ct.StartLxdContainerRequest_PrivilegeLevel
	timeout          uint32
	noShell          bool
	created, wasUp   bool
	username, pretty string
}

func (a *app) containerCommand() *cobra.Command {
	var o containerOptions
	var privileged bool
	cmd := &cobra.Command{
		Use:   "container VM CONTAINER [SERVER ALIAS | ROOTFS METADATA]",
		Short: "Make and start a container in a VM, and open a shell in it",
		Long: "Start the VM if it does not run, create the container if it does not exist, with a user in\n" +
			"it, start it, and open a shell in it when standard input is a terminal. What is there already\n" +
			"is left as it is.\n\n" +
			"A container is made from the image that comes with Auberge, needing no network; from the\n" +
			"image ALIAS of a simplestreams SERVER (https://...); or from the files ROOTFS and METADATA in\n" +
			"the VM, below /mnt/stateful/transfer.",
		Example: `  vmc container termina penguin
  vmc container termina web https://image.example debian/trixie --user alice`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 && len(args) != 4 {
				return fmt.Errorf("give VM CONTAINER, and an image by SERVER ALIAS or ROOTFS METADATA or not at all, not %d arguments", len(args))
			}
			return nil
		},
		ValidArgsFunction: a.completeContainer(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.image(args[2:]); err != nil {
				return err
			}
			if cmd.Flags().Changed("privileged") {
				o.privilege = ct.StartLxdContainerRequest_UNPRIVILEGED
				if privileged {
					o.privilege = ct.StartLxdContainerRequest_PRIVILEGED
				}
			}
			return a.withSession(func(ctx context.Context, s *session, args []string) error {
				o.vm, o.name = args[0], args[1]
				return a.container(ctx, s, &o)
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "", "`NAME` of the user in a new container (default: yours)")
	f.BoolVar(&privileged, "privileged", false, "let root in the container be root of the VM; =false takes it back")
	f.Uint32Var(&o.timeout, "timeout", 1800, "`SECONDS` that all of it may take")
	f.BoolVar(&o.noShell, "no-shell", false, "open no shell")
	completeFlag(cmd, "user", words())
	completeFlag(cmd, "timeout", words())
	return cmd
}

// image reads the arguments that name one.
func (o *containerOptions) image(args []string) error {
	switch {
	case len(args) == 0:
	case strings.HasPrefix(args[0], "/") && strings.HasPrefix(args[1], "/"):
		o.rootfs, o.meta = args[0], args[1]
	case strings.HasPrefix(args[0], "https://"), strings.HasPrefix(args[0], "http://"):
		o.server, o.alias = args[0], args[1]
	default:
		return withCode(ExitUsage, fmt.Errorf("%q and %q name no image: give a server that begins with https:// and an alias, or two absolute paths in the VM", args[0], args[1]))
	}
	return nil
}

func (a *app) container(ctx context.Context, s *session, o *containerOptions) error {
	whole := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(o.timeout)*time.Second,
		fmt.Errorf("not done within %d seconds (--timeout); it goes on in the VM", o.timeout))
	defer cancel()
	if err := a.ensureVM(ctx, s, o.vm); err != nil {
		return err
	}
	c := s.with(cicerone())
	f, err := a.follow(ctx, c, o.vm)
	if err != nil {
		return err
	}
	defer f.end()
	r := a.report(o.name)
	err = a.bringUp(ctx, s, f, o, r)
	r.end()
	if err != nil {
		return err
	}
	if !o.noShell && !a.json && a.in != nil && term.IsTerminal(int(a.in.Fd())) {
		return a.containerShell(whole, s, o.vm, o.name)
	}
	if a.json {
		return a.printValue(map[string]any{"vm_name": o.vm, "container_name": o.name, "owner_id": a.ownerWord(),
			"container_username": o.username, "created": o.created, "was_running": o.wasUp, "os": o.pretty})
	}
	fmt.Fprintf(a.out, "%s runs in %s, its user is %s; \"vsh %s %s\" opens a shell\n",
		printable(o.name), printable(o.vm), printable(cmp.Or(o.username, "not set up")), printable(o.vm), printable(o.name))
	return nil
}

// ensureVM starts a VM that does not run, as "vmc start" does.
func (a *app) ensureVM(ctx context.Context, s *session, vm string) error {
	var info pb.GetVmInfoResponse
	if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: vm, OwnerId: a.owner}, &info); err != nil || info.Success {
		return err
	}
	_, err := a.startVM(ctx, s, vm, &startOptions{termina: true})
	return err
}

// bringUp does what is missing for a container to run.
func (a *app) bringUp(ctx context.Context, s *session, f *follower, o *containerOptions, r *report) error {
	if up, err := f.running(ctx, a.owner, o.name); err != nil {
		return err
	} else if up {
		o.wasUp = true
		return a.lookUpUser(ctx, f, o)
	}
	r.say("waiting for the VM's container manager", -1)
	if err := a.awaitTremplin(ctx, s, f); err != nil {
		return err
	}
	if err := a.startLxd(ctx, f); err != nil {
		return err
	}
	if err := a.createContainer(ctx, f, o, r); err != nil {
		return err
	}
	r.say("setting up its user", -1)
	var user ct.SetUpLxdContainerUserResponse
	err := f.s.call(ctx, "SetUpLxdContainerUser", &ct.SetUpLxdContainerUserRequest{VmName: o.vm, ContainerName: o.name, OwnerId: a.owner,
		ContainerUsername: cmp.Or(o.user, loginName())}, &user)
	switch {
	case err != nil:
		return err
	case user.Status != ct.SetUpLxdContainerUserResponse_SUCCESS && user.Status != ct.SetUpLxdContainerUserResponse_EXISTS:
		return refused("set up the user of "+o.name, user.FailureReason)
	}
	o.username = user.ContainerUsername
	if err := a.startContainer(ctx, f, o.name, o.privilege, r, &o.pretty); err != nil {
		return err
	}
	if o.username == "" {
		return a.lookUpUser(ctx, f, o)
	}
	return nil
}

// lookUpUser asks for the name of the container's user. One without a user is
// a container all the same.
func (a *app) lookUpUser(ctx context.Context, f *follower, o *containerOptions) error {
	var who ct.GetLxdContainerUsernameResponse
	err := f.s.call(ctx, "GetLxdContainerUsername", &ct.GetLxdContainerUsernameRequest{VmName: o.vm, ContainerName: o.name, OwnerId: a.owner}, &who)
	o.username = who.Username
	return err
}

// awaitTremplin waits until the VM can have containers.
func (a *app) awaitTremplin(ctx context.Context, s *session, f *follower) error {
	ready := func(ctx context.Context, _ bool) (bool, error) {
		var info pb.GetVmInfoResponse
		if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: f.vm, OwnerId: a.owner}, &info); err != nil {
			return false, err
		}
		if !info.Success {
			return false, a.notRunning(ctx, s, f.vm)
		}
		return info.VmInfo.GetStatus() != pb.VmStatus_VM_STATUS_STARTING, nil
	}
	if done, err := ready(ctx, false); done || err != nil {
		return err
	}
	return f.await(ctx, work{what: "wait for the container manager of " + f.vm, look: ready,
		hear: func(_ string, m proto.Message) (bool, error) {
			_, started := m.(*ct.TremplinStartedSignal)
			return started, nil
		}})
}

// startLxd starts the VM's container manager if it is not up.
func (a *app) startLxd(ctx context.Context, f *follower) error {
	what := "start the container manager of " + f.vm
	begin := func(ctx context.Context, _ bool) (bool, error) {
		var resp ct.StartLxdResponse
		if err := f.s.call(ctx, "StartLxd", &ct.StartLxdRequest{VmName: f.vm, OwnerId: a.owner}, &resp); err != nil {
			return false, err
		}
		switch resp.Status {
		case ct.StartLxdResponse_ALREADY_RUNNING:
			return true, nil
		case ct.StartLxdResponse_STARTING:
			return false, nil
		}
		return false, reason(resp.FailureReason)
	}
	if done, err := begin(ctx, false); done || err != nil {
		return failed(what, err)
	}
	return f.await(ctx, work{what: what, look: begin, hear: func(_ string, m proto.Message) (bool, error) {
		p, ok := m.(*ct.StartLxdProgressSignal)
		if !ok {
			return false, nil
		}
		if p.Status == ct.StartLxdProgressSignal_FAILED {
			return false, failed(what, reason(p.FailureReason))
		}
		return p.Status == ct.StartLxdProgressSignal_STARTED, nil
	}})
}

// createContainer creates the container if there is none.
func (a *app) createContainer(ctx context.Context, f *follower, o *containerOptions, r *report) error {
	what := "create the container " + o.name
	begin := func(ctx context.Context) (exists bool, err error) {
		var resp ct.CreateLxdContainerResponse
		err = f.s.call(ctx, "CreateLxdContainer", &ct.CreateLxdContainerRequest{VmName: o.vm, ContainerName: o.name, OwnerId: a.owner,
			ImageServer: o.server, ImageAlias: o.alias, RootfsPath: o.rootfs, MetadataPath: o.meta}, &resp)
		switch {
		case err != nil:
			return false, err
		case resp.Status == ct.CreateLxdContainerResponse_EXISTS:
			return true, nil
		case resp.Status == ct.CreateLxdContainerResponse_CREATING:
			return false, nil
		}
		return false, reason(resp.FailureReason)
	}
	if exists, err := begin(ctx); exists || err != nil {
		return failed(what, err)
	}
	o.created = true
	r.say("creating it", -1)
	return f.await(ctx, work{what: what,
		// After a restart nobody may be left who would tell the end of it:
		// asking again is answered by what goes on, or begins again. What is
		// there already must not be asked for: without a user it is made anew.
		look: func(ctx context.Context, again bool) (bool, error) {
			exists, err := f.exists(ctx, a.owner, o.name)
			if again && !exists && err == nil {
				return begin(ctx)
			}
			return exists, err
		},
		hear: func(_ string, m proto.Message) (bool, error) {
			switch m := m.(type) {
			case *ct.LxdContainerDownloadingSignal:
				if m.ContainerName == o.name {
					r.say("downloading its image", int(m.DownloadProgress))
				}
			case *ct.LxdContainerCreatedSignal:
				if m.ContainerName != o.name {
					return false, nil
				}
				switch m.Status {
				case ct.LxdContainerCreatedSignal_CREATED:
					return true, nil
				case ct.LxdContainerCreatedSignal_UNKNOWN:
					return false, nil
				}
				return false, failed(what, ended(m.Status, m.FailureReason))
			}
			return false, nil
		}})
}

// startContainer starts a container and waits until its agent has reported.
func (a *app) startContainer(ctx context.Context, f *follower, name string, privilege ct.StartLxdContainerRequest_PrivilegeLevel, r *report, pretty *string) error {
	what := "start the container " + name
	r.say("starting it", -1)
	begin := func(ctx context.Context) error {
		var resp ct.StartLxdContainerResponse
		err := f.s.call(ctx, "StartLxdContainer", &ct.StartLxdContainerRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner, PrivilegeLevel: privilege}, &resp)
		if err != nil {
			return err
		}
		*pretty = resp.OsRelease.GetPrettyName()
		switch resp.Status {
		case ct.StartLxdContainerResponse_FAILED, ct.StartLxdContainerResponse_UNKNOWN:
			return reason(resp.FailureReason)
		}
		return nil
	}
	if err := begin(ctx); err != nil {
		return failed(what, err)
	}
	up := func(ctx context.Context, _ bool) (bool, error) { return f.running(ctx, a.owner, name) }
	if done, err := up(ctx, false); done || err != nil {
		return failed(what, err)
	}
	r.say("waiting for its agent", -1)
	return f.await(ctx, work{what: what, look: up, hear: func(_ string, m proto.Message) (bool, error) {
		switch m := m.(type) {
		case *ct.ContainerStartedSignal:
			return m.ContainerName == name, nil
		case *ct.LxdContainerStartingSignal:
			if m.ContainerName != name {
				return false, nil
			}
			*pretty = cmp.Or(m.OsRelease.GetPrettyName(), *pretty)
			switch m.Status {
			case ct.LxdContainerStartingSignal_FAILED, ct.LxdContainerStartingSignal_CANCELLED:
				return false, failed(what, ended(m.Status, m.FailureReason))
			}
		case *ct.ContainerShutdownSignal:
			if m.ContainerName == name {
				return false, failed(what, errors.New("it has stopped before its agent reported"))
			}
		}
		return false, nil
	}})
}

// running asks whether a container runs, with its agent.
func (f *follower) running(ctx context.Context, owner, name string) (bool, error) {
	var resp ct.IsContainerRunningResponse
	err := f.s.call(ctx, "IsContainerRunning", &ct.IsContainerRunningRequest{VmName: f.vm, ContainerName: name, OwnerId: owner}, &resp)
	return resp.ContainerRunning, err
}

// exists asks whether a container is there, running or not.
func (f *follower) exists(ctx context.Context, owner, name string) (bool, error) {
	all, err := listContainers(ctx, f.s, f.vm, owner)
	for _, c := range all {
		if field(c, "name") == name && field(c, "status") != "unknown" {
			return true, nil
		}
	}
	return false, err
}

// loginName is the caller's login name as a container takes it.
func loginName() string {
	u, err := user.Current()
	if err != nil {
		return "user"
	}
	return validUser(u.Username)
}

// validUser makes a name of lower-case letters, digits and dashes of what a
// directory service may have called somebody.
func validUser(name string) string {
	if _, after, ok := strings.Cut(name, `\`); ok {
		name = after // DOMAIN\name
	}
	name, _, _ = strings.Cut(name, "@")
	name = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-':
			return c
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		}
		return '_'
	}, name)
	name = strings.TrimLeft(name, "-_0123456789")
	if len(name) > 31 {
		name = name[:31]
	}
	if name == "" || name == "root" {
		return "user"
	}
	return name
}

// reason is an error of a response that says no.
func reason(text string) error { return errors.New(cmp.Or(text, "no reason was given")) }

// ended is the error of work that did not end well, by its status and reason.
func ended(status fmt.Stringer, text string) error {
	word := strings.ToLower(strings.ReplaceAll(status.String(), "_", " "))
	if text == "" {
		return errors.New(word)
	}
	return fmt.Errorf("%s: %s", word, text)
}

// failed says what has failed, keeping an error's exit code.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return withCode(exitCodeOf(err), fmt.Errorf("%s: %w", what, err))
}
