package vmc

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// completionTime is what a person at a shell waits for names at most.
const completionTime = 3 * time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// names are what a completion asks the service for. A service that cannot be
// reached has none to offer, which is no news while somebody types.
type names func(context.Context, *session) []string

// completeVM completes the first argument with names.
func (a *app) completeVM(sources ...names) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return beginning(typed, a.ask(cmd.Context(), sources...)), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) ask(ctx context.Context, sources ...names) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	s, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer s.close()
	var found []string
	for _, source := range sources {
		found = append(found, source(ctx, s)...)
	}
	return sorted(found)
}

// running are the VMs that run.
func (a *app) running(ctx context.Context, s *session) []string {
	var list pb.ListVmsResponse
	if err := s.call(ctx, "ListVms", &pb.ListVmsRequest{OwnerId: a.owner}, &list); err != nil {
		return nil
	}
	var found []string
	for _, v := range list.Vms {
		found = append(found, v.Name)
	}
	return found
}

// withDisk are the VMs that have a disk.
func (a *app) withDisk(ctx context.Context, s *session) []string {
	var list pb.ListVmDisksResponse
	err := s.call(ctx, "ListVmDisks", &pb.ListVmDisksRequest{CryptohomeId: a.owner, AllLocations: true}, &list)
	if err != nil {
		return nil
	}
	var found []string
	for _, d := range list.Images {
		found = append(found, d.Name)
	}
	return found
}

// stopped are the VMs that have a disk and do not run.
func (a *app) stopped(ctx context.Context, s *session) []string {
	running := a.running(ctx, s)
	return slices.DeleteFunc(a.withDisk(ctx, s), func(name string) bool { return slices.Contains(running, name) })
}

// completeFirst completes the first argument from lists.
func completeFirst(lists ...func() []string) completer {
	return func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var all []string
		for _, list := range lists {
			all = append(all, list()...)
		}
		return beginning(typed, sorted(all)), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag's value from a list.
func completeFlag(cmd *cobra.Command, flag string, list func() []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return beginning(typed, list()), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // there is no such flag: a defect that any run shows
	}
}

// beginning are the names that begin with what was typed.
func beginning(typed string, names []string) []string {
	var found []string
	for _, n := range names {
		if strings.HasPrefix(n, typed) {
			found = append(found, n)
		}
	}
	return found
}

func nothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func words(list ...string) func() []string { return func() []string { return list } }

// completeContainer completes a VM and then one of its containers.
func (a *app) completeContainer() completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return beginning(typed, a.ask(cmd.Context(), a.running)), cobra.ShellCompDirectiveNoFileComp
		case 1:
			return beginning(typed, a.ask(cmd.Context(), a.containersOf(args[0]))), cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeContainerFile is completeContainer for VM CONTAINER FILE.
func (a *app) completeContainerFile() completer {
	names := a.completeContainer()
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 2 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return names(cmd, args, typed)
	}
}

// completeApplication completes VM [CONTAINER] APPLICATION.
func (a *app) completeApplication() completer {
	names := a.completeContainer()
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 1:
			return beginning(typed, a.ask(cmd.Context(), a.containersOf(args[0]), a.appsOf(args[0], defaultContainer))), cobra.ShellCompDirectiveNoFileComp
		case 2:
			return beginning(typed, a.ask(cmd.Context(), a.appsOf(args[0], args[1]))), cobra.ShellCompDirectiveNoFileComp
		}
		return names(cmd, args, typed)
	}
}

// containersOf are those that run, which the service knows, and then the others,
// for which it asks the VM: a busy one may take too long.
func (a *app) containersOf(vm string) names {
	return func(ctx context.Context, s *session) []string {
		s = s.with(cicerone())
		var found []string
		var running ct.ListRunningContainersResponse
		if s.call(ctx, "ListRunningContainers", &ct.ListRunningContainersRequest{OwnerId: a.owner}, &running) == nil {
			for _, c := range running.Containers {
				if c.VmName == vm {
					found = append(found, c.ContainerName)
				}
			}
		}
		all, _ := listContainers(ctx, s, vm, a.owner)
		for _, c := range all {
			found = append(found, field(c, "name"))
		}
		return found
	}
}

func (a *app) appsOf(vm, container string) names {
	return func(ctx context.Context, s *session) []string {
		list, err := a.applications(ctx, s.with(cicerone()), vm, container)
		if err != nil {
			return nil
		}
		var found []string
		for _, app := range list.Apps {
			found = append(found, app.DesktopFileId)
		}
		return found
	}
}
