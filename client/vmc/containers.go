package vmc

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
)

// withContainer runs a command about a container of a VM, with a follower of
// its signals. The container is the default one when it is not named.
func (a *app) withContainer(body func(ctx context.Context, f *follower, name string, args []string) error) func(*cobra.Command, []string) error {
	return a.withSession(func(ctx context.Context, s *session, args []string) error {
		f, err := a.follow(ctx, s.with(cicerone()), args[0])
		if err != nil {
			return err
		}
		defer f.end()
		return body(ctx, f, args[1], args[2:])
	})
}

func listContainers(ctx context.Context, s *session, vm, owner string) ([]dict, error) {
	var all []dict
	err := s.plain(ctx, "ListContainers", []any{vm, owner}, &all)
	return all, err
}

func (a *app) containersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "containers [VM]",
		Short: "List the containers of a VM, or those that run in all of your VMs",
		Long: "List all containers of a running VM, or without one those containers in your VMs that run,\n" +
			"which are those whose agent has reported.",
		Example:           "  vmc containers termina",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVM(a.running),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			c := s.with(cicerone())
			if len(args) == 0 {
				return a.printRunning(ctx, c)
			}
			all, err := listContainers(ctx, c, args[0], a.owner)
			if err != nil {
				return err
			}
			if a.json {
				return a.printValue(map[string]any{"vm_name": args[0], "containers": plainValue(all)})
			}
			t := a.table("NAME", "STATUS", "ADDRESS", "SYSTEM")
			for _, c := range all {
				t.row(field(c, "name"), field(c, "status"), field(c, "address"), field(c, "os"))
			}
			return t.end()
		}),
	}
}

func (a *app) printRunning(ctx context.Context, s *session) error {
	var resp ct.ListRunningContainersResponse
	if err := s.call(ctx, "ListRunningContainers", &ct.ListRunningContainersRequest{OwnerId: a.owner}, &resp); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(&resp)
	}
	t := a.table("VM", "NAME", "SYSTEM")
	for _, c := range resp.Containers {
		t.row(c.VmName, c.ContainerName, cmp.Or(c.OsRelease.GetPrettyName(), "-"))
	}
	return t.end()
}

func (a *app) startContainerCommand() *cobra.Command {
	var privileged bool
	cmd := &cobra.Command{
		Use:               "start-container VM CONTAINER",
		Short:             "Start a container that exists",
		Example:           "  vmc start-container termina penguin",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().BoolVar(&privileged, "privileged", false, "let root in the container be root of the VM; =false takes it back")
	cmd.RunE = a.withContainer(func(ctx context.Context, f *follower, name string, _ []string) error {
		level := ct.StartLxdContainerRequest_UNCHANGED
		if cmd.Flags().Changed("privileged") {
			level = ct.StartLxdContainerRequest_UNPRIVILEGED
			if privileged {
				level = ct.StartLxdContainerRequest_PRIVILEGED
			}
		}
		if err := a.startLxd(ctx, f); err != nil {
			return err
		}
		r := a.report(name)
		var pretty string
		err := a.startContainer(ctx, f, name, level, r, &pretty)
		r.end()
		if err != nil {
			return a.unknownContainer(ctx, f, name, err)
		}
		return a.done("%s runs", name)
	})
	return cmd
}

// done ends a command that has no more to tell than that.
func (a *app) done(format string, name string) error {
	if a.json {
		return a.printValue(struct{}{})
	}
	fmt.Fprintf(a.out, format+"\n", printable(name))
	return nil
}

// unknownContainer adds to an error about a container that does not exist
// which one may have been meant.
func (a *app) unknownContainer(ctx context.Context, f *follower, name string, err error) error {
	all, listErr := listContainers(ctx, f.s, f.vm, a.owner)
	if listErr != nil {
		return err
	}
	var names []string
	for _, c := range all {
		names = append(names, field(c, "name"))
	}
	if slices.Contains(names, name) {
		return err
	}
	return withCode(ExitNotFound, fmt.Errorf("%s has no container %q%s; \"vmc containers %s\" shows what there is", f.vm, name, suggestion(name, names), f.vm))
}

func (a *app) stopContainerCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "stop-container VM CONTAINER",
		Short:             "Stop a container",
		Example:           "  vmc stop-container termina penguin",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeContainer(),
		RunE:              a.withContainer(a.stopContainer),
	}
}

func (a *app) stopContainer(ctx context.Context, f *follower, name string, _ []string) error {
	what := "stop the container " + name
	begin := func(ctx context.Context, _ bool) (bool, error) {
		var resp ct.StopLxdContainerResponse
		if err := f.s.call(ctx, "StopLxdContainer", &ct.StopLxdContainerRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner}, &resp); err != nil {
			return false, err
		}
		switch resp.Status {
		case ct.StopLxdContainerResponse_STOPPED:
			return true, nil
		case ct.StopLxdContainerResponse_STOPPING:
			return false, nil
		case ct.StopLxdContainerResponse_DOES_NOT_EXIST:
			return false, withCode(ExitNotFound, reason(cmp.Or(resp.FailureReason, "it does not exist")))
		}
		return false, reason(resp.FailureReason)
	}
	r := a.report(name)
	defer r.end()
	r.say("stopping it", -1)
	over, err := begin(ctx, false)
	if err != nil {
		return a.unknownContainer(ctx, f, name, failed(what, err))
	}
	if !over {
		err = f.await(ctx, work{what: what, look: begin, hear: func(_ string, m proto.Message) (bool, error) {
			s, ok := m.(*ct.LxdContainerStoppingSignal)
			if !ok || s.ContainerName != name {
				return false, nil
			}
			switch s.Status {
			case ct.LxdContainerStoppingSignal_FAILED, ct.LxdContainerStoppingSignal_CANCELLED:
				return false, failed(what, ended(s.Status, s.FailureReason))
			}
			return s.Status == ct.LxdContainerStoppingSignal_STOPPED, nil
		}})
	}
	r.end()
	if err != nil {
		return err
	}
	return a.done("%s is stopped", name)
}

func (a *app) deleteContainerCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "delete-container VM CONTAINER",
		Short:             "Stop a container and remove it for good, with all that is in it",
		Example:           "  vmc delete-container termina penguin --yes",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = a.withContainer(func(ctx context.Context, f *follower, name string, _ []string) error {
		err := a.confirm(yes, "delete-container removes all data of the container",
			fmt.Sprintf("Remove the container %s of %s and everything in it?", name, f.vm))
		if err != nil {
			return err
		}
		return a.deleteContainer(ctx, f, name)
	})
	return cmd
}

func (a *app) deleteContainer(ctx context.Context, f *follower, name string) error {
	what := "delete the container " + name
	gone := func(ctx context.Context, _ bool) (bool, error) {
		exists, err := f.exists(ctx, a.owner, name)
		return err == nil && !exists, err
	}
	r := a.report(name)
	defer r.end()
	r.say("removing it", -1)
	var resp ct.DeleteLxdContainerResponse
	if err := f.s.call(ctx, "DeleteLxdContainer", &ct.DeleteLxdContainerRequest{VmName: f.vm, ContainerName: name, OwnerId: a.owner}, &resp); err != nil {
		return err
	}
	switch resp.Status {
	case ct.DeleteLxdContainerResponse_DELETING:
	case ct.DeleteLxdContainerResponse_DOES_NOT_EXIST:
		return a.unknownContainer(ctx, f, name, withCode(ExitNotFound, fmt.Errorf("%s has no container %q", f.vm, name)))
	default:
		return failed(what, reason(resp.FailureReason))
	}
	err := f.await(ctx, work{what: what, look: gone, hear: func(_ string, m proto.Message) (bool, error) {
		s, ok := m.(*ct.LxdContainerDeletedSignal)
		if !ok || s.ContainerName != name {
			return false, nil
		}
		switch s.Status {
		case ct.LxdContainerDeletedSignal_FAILED, ct.LxdContainerDeletedSignal_CANCELLED:
			return false, failed(what, ended(s.Status, s.FailureReason))
		}
		return s.Status == ct.LxdContainerDeletedSignal_DELETED, nil
	}})
	r.end()
	if err != nil {
		return err
	}
	return a.done("%s is gone", name)
}
