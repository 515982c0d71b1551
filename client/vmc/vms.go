package vmc

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) stopCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "stop NAME|--all",
		Short: "Stop a VM in order",
		Long: "Stop the VM called NAME, or with --all every VM of yours: its processes are told to\n" +
			"end, its disks are unmounted, and it is powered off. A VM that does not run is no error.",
		Example:           "  vmc stop termina",
		ValidArgsFunction: a.completeVM(a.running),
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			if all {
				return a.stopAll(ctx, s)
			}
			return a.stop(ctx, s, args[0])
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "stop all your VMs")
	return cmd
}

func (a *app) stop(ctx context.Context, s *session, name string) error {
	var before pb.GetVmInfoResponse
	if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: name, OwnerId: a.owner}, &before); err != nil {
		return err
	}
	var resp pb.SuccessFailureResponse
	if err := s.call(ctx, "StopVm", &pb.StopVmRequest{Name: name, OwnerId: a.owner}, &resp); err != nil {
		return err
	}
	if !resp.Success {
		return refused("stop "+name, resp.FailureReason)
	}
	if a.json {
		return a.printJSON(&resp)
	}
	if !before.Success {
		fmt.Fprintf(a.err, "vmc: VM %q did not run%s\n", name, suggestion(name, a.running(ctx, s)))
	}
	return nil
}

func (a *app) listCommand() *cobra.Command {
	var all, everybody bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List your VMs",
		Long: "List your VMs that run; with --all also those that have a disk and do not run, with\n" +
			"--all-users everybody's that run, which needs the administrator's right.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			switch {
			case everybody:
				return a.listEverybody(ctx, s)
			case all:
				return a.listAll(ctx, s)
			}
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
			words := stateWords(ctx, s)
			t := a.table("NAME", "OWNER", "STATUS", "ADDRESS", "PID", "CID")
			for _, v := range resp.Vms {
				t.row(v.Name, v.OwnerId, cmp.Or(words[vmKey{v.OwnerId, v.Name}], statusWord(v.Status)), address(v.VmInfo.GetIpv4Address()), v.VmInfo.GetPid(), v.VmInfo.GetCid())
			}
			return t.end()
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also VMs that have a disk and do not run")
	cmd.Flags().BoolVar(&everybody, "all-users", false, "everybody's VMs, for an administrator")
	cmd.MarkFlagsMutuallyExclusive("all", "all-users")
	return cmd
}

// listAll shows the VMs that run and the disks that there are.
func (a *app) listAll(ctx context.Context, s *session) error {
	var vms pb.ListVmsResponse
	if err := s.call(ctx, "ListVms", &pb.ListVmsRequest{OwnerId: a.owner}, &vms); err != nil {
		return err
	}
	if !vms.Success {
		return refused("list VMs", vms.FailureReason)
	}
	var disks pb.ListVmDisksResponse
	err := s.call(ctx, "ListVmDisks", &pb.ListVmDisksRequest{CryptohomeId: a.owner, AllLocations: true}, &disks)
	if err != nil {
		return err
	}
	if !disks.Success {
		return refused("list disks", disks.FailureReason)
	}
	if a.json {
		running, err := messageJSON(&vms)
		if err != nil {
			return err
		}
		images, err := messageJSON(&disks)
		if err != nil {
			return err
		}
		return a.printValue(map[string]any{"vms": running, "disks": images})
	}
	images := map[string]*pb.VmDiskInfo{}
	for _, d := range disks.Images {
		images[d.Name] = d
	}
	// Disks are those of one owner, VMs those of all labels where none is named.
	owner := a.ownerWord()
	words := stateWords(ctx, s)
	t := a.table("NAME", "OWNER", "STATUS", "ADDRESS", "MEMORY", "DISK", "ON DISK")
	for _, v := range vms.Vms {
		kind, size := "-", "-"
		if d := images[v.Name]; d != nil && v.OwnerId == owner {
			kind, size = imageWord(d.ImageType), bytesWord(d.Size)
			delete(images, v.Name)
		}
		t.row(v.Name, v.OwnerId, cmp.Or(words[vmKey{v.OwnerId, v.Name}], statusWord(v.Status)), address(v.VmInfo.GetIpv4Address()),
			bytesWord(uint64(v.VmInfo.GetAllocatedMemory())), kind, size)
	}
	for _, d := range disks.Images {
		if images[d.Name] != nil {
			t.row(d.Name, owner, "stopped", "-", "-", imageWord(d.ImageType), bytesWord(d.Size))
		}
	}
	return t.end()
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Show a running VM",
		Example:           "  vmc info termina --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.running),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			var resp pb.GetVmInfoResponse
			if err := s.call(ctx, "GetVmInfo", &pb.GetVmInfoRequest{Name: args[0], OwnerId: a.owner}, &resp); err != nil {
				return err
			}
			if !resp.Success {
				return a.notRunning(ctx, s, args[0])
			}
			if a.json {
				return a.printJSON(&resp)
			}
			i := resp.VmInfo
			t := a.table()
			t.row("Name", args[0])
			t.row("Status", cmp.Or(stateWords(ctx, s)[vmKey{a.ownerWord(), args[0]}], statusWord(i.Status)))
			t.row("Address", address(i.Ipv4Address))
			t.row("PID", i.Pid)
			t.row("CID", i.Cid)
			t.row("Type", strings.ToLower(i.VmType.String()))
			t.row("Memory", fmt.Sprintf("%d MiB", i.AllocatedMemory>>20))
			return t.end()
		}),
	}
}

// notRunning is the error for a VM that does not run, and says what may have
// been meant or what to do.
func (a *app) notRunning(ctx context.Context, s *session, name string) error {
	text := fmt.Sprintf("VM %q does not run", name)
	disks := a.withDisk(ctx, s)
	for _, d := range disks {
		if d == name {
			return withCode(ExitNotFound, fmt.Errorf("%s; it has a disk, and \"vmc start %s\" starts it", text, name))
		}
	}
	if hint := suggestion(name, append(a.running(ctx, s), disks...)); hint != "" {
		return withCode(ExitNotFound, errors.New(text+hint))
	}
	return withCode(ExitNotFound, errors.New(text+"; \"vmc list --all\" shows what there is"))
}

// ownerWord is the owner of a VM as replies write it.
func (a *app) ownerWord() string { return cmp.Or(a.owner, strconv.Itoa(os.Getuid())) }

// statusWord says VM_STATUS_RUNNING as "running".
func statusWord(s pb.VmStatus) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.String(), "VM_STATUS_"), "_", " "))
}

// imageWord says DISK_IMAGE_RAW as "raw".
func imageWord(t pb.DiskImageType) string {
	return strings.ToLower(strings.TrimPrefix(t.String(), "DISK_IMAGE_"))
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
