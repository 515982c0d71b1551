package vmc

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stop NAME",
		Short: "Stop a VM in order",
		Args:  cobra.ExactArgs(1),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			var resp pb.SuccessFailureResponse
			if err := s.call(ctx, "StopVm", &pb.StopVmRequest{Name: args[0], OwnerId: a.owner}, &resp); err != nil {
				return err
			}
			if !resp.Success {
				return refused("stop "+args[0], resp.FailureReason)
			}
			if a.json {
				return a.printJSON(&resp)
			}
			return nil
		}),
	}
}

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List your running VMs",
		Args:    cobra.NoArgs,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var resp pb.ListVmsResponse
			if err := s.call(ctx, "ListVms", &pb.ListVmsRequest{OwnerId: a.owner}, &resp); err != nil {
				return err
			}
			if !resp.Success {
				return refused("list VMs", resp.FailureReason)
			}
			if a.json {
				return a.printJSON(&resp)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tOWNER\tSTATUS\tADDRESS\tPID\tCID")
			for _, v := range resp.Vms {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\n", v.Name, v.OwnerId, statusWord(v.Status),
					address(v.VmInfo.GetIpv4Address()), v.VmInfo.GetPid(), v.VmInfo.GetCid())
			}
			return w.Flush()
		}),
	}
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info NAME",
		Short: "Show a running VM",
		Args:  cobra.ExactArgs(1),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			var resp pb.GetVmInfoResponse
			if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: args[0], OwnerId: a.owner}, &resp); err != nil {
				return err
			}
			if !resp.Success {
				return withCode(ExitNotFound, fmt.Errorf("VM %q does not run", args[0]))
			}
			if a.json {
				return a.printJSON(&resp)
			}
			i := resp.VmInfo
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "Name\t%s\nStatus\t%s\nAddress\t%s\nPID\t%d\nCID\t%d\nType\t%s\nMemory\t%d MiB\n",
				args[0], statusWord(i.Status), address(i.Ipv4Address), i.Pid, i.Cid,
				strings.ToLower(i.VmType.String()), i.AllocatedMemory>>20)
			return w.Flush()
		}),
	}
}

// withSession runs a command's body with a connection.
func (a *app) withSession(f func(context.Context, *session, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		return f(cmd.Context(), s, args)
	}
}

// statusWord says VM_STATUS_RUNNING as "running".
func statusWord(s pb.VmStatus) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.String(), "VM_STATUS_"), "_", " "))
}

// address reads an IPv4 address as the contract carries it: network byte
// order in memory.
func address(n uint32) string {
	if n == 0 {
		return "none"
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b).String()
}
