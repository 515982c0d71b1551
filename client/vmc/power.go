package vmc

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) suspendCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "suspend NAME",
		Short: "Suspend a VM: it keeps its memory and uses no CPU",
		Long: "Tell the guest of the VM called NAME that it will be suspended, and halt its CPUs. The VM\n" +
			"keeps its memory and its place; \"vmc resume\" lets it run on.",
		Example:           "  vmc suspend termina",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			return a.simply(ctx, s, "suspend", args[0], "SuspendVm", &pb.SuspendVmRequest{Name: args[0], OwnerId: a.owner})
		}),
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume NAME",
		Short:             "Resume a suspended VM, its clock set right",
		Example:           "  vmc resume termina",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			return a.simply(ctx, s, "resume", args[0], "ResumeVm", &pb.ResumeVmRequest{Name: args[0], OwnerId: a.owner})
		}),
	}
}

// simply calls a method that only says whether it went well. The service
// finds nothing wrong with a VM that does not run; a person should hear of it.
func (a *app) simply(ctx context.Context, s *session, verb, name, method string, req proto.Message) error {
	var info pb.GetVmInfoResponse
	if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: name, OwnerId: a.owner}, &info); err != nil {
		return err
	}
	if !info.Success {
		return a.notRunning(ctx, s, name)
	}
	var resp pb.SuccessFailureResponse
	if err := s.call(ctx, method, req, &resp); err != nil {
		return err
	}
	if !resp.Success {
		return refused(verb+" "+name, resp.FailureReason)
	}
	if a.json {
		return a.printJSON(&resp)
	}
	return nil
}

// stopAll stops all of the caller's VMs. The method says nothing about how it
// went, so what is left is looked up.
func (a *app) stopAll(ctx context.Context, s *session) error {
	if err := s.call(ctx, "StopAllVms", nil, nil); err != nil {
		return err
	}
	var left pb.ListVmsResponse
	if err := s.call(ctx, "ListVms", &pb.ListVmsRequest{}, &left); err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(&left); err != nil || len(left.Vms) == 0 {
			return err
		}
		return silentExit(ExitFailed)
	}
	for _, v := range left.Vms {
		fmt.Fprintf(a.err, "vmc: %s is %s\n", printable(v.Name), statusWord(v.Status))
	}
	if len(left.Vms) > 0 {
		return withCode(ExitFailed, fmt.Errorf("%d of your VMs could not be stopped; see the log of vm_concierge", len(left.Vms)))
	}
	return nil
}

func (a *app) timeSyncCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "time-sync",
		Short:             "Set the clocks of your VMs right",
		Long:              "Set the clock of each of your VMs to the host's and say how that went.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var resp pb.SyncVmTimesResponse
			if err := s.call(ctx, "SyncVmTimes", nil, &resp); err != nil {
				return err
			}
			if a.json {
				if err := a.printJSON(&resp); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(a.out, "%d asked, %d failed\n", resp.Requests, resp.Failures)
				for _, r := range resp.FailureReason {
					fmt.Fprintf(a.err, "vmc: %s\n", printable(r))
				}
			}
			if resp.Failures > 0 {
				return silentExit(ExitFailed)
			}
			return nil
		}),
	}
}
