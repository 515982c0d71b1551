package vmc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) createCommand() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use:               "create NAME",
		Short:             "Create the disk of a VM",
		Long:              "Create the disk of the VM called NAME and print its path. \"vmc start\" does it by itself.",
		Example:           "  vmc create termina --size 20G",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			resp, err := a.createDisk(ctx, s, args[0], uint64(size))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(resp)
			}
			if resp.Status == pb.DiskImageStatus_DISK_STATUS_EXISTS {
				fmt.Fprintf(a.err, "vmc: %s has a disk already\n", args[0])
			}
			fmt.Fprintln(a.out, resp.DiskPath)
			return nil
		}),
	}
	cmd.Flags().Var(&size, "size", "size, such as 512M or 20G (default: nine tenths of the free space; disks are sparse)")
	return cmd
}

func (a *app) createDisk(ctx context.Context, s *session, name string, size uint64) (*pb.CreateDiskImageResponse, error) {
	var resp pb.CreateDiskImageResponse
	err := s.call(ctx, "CreateDiskImage", &pb.CreateDiskImageRequest{CryptohomeId: a.owner, VmName: name, DiskSize: size}, &resp)
	if err != nil {
		return nil, err
	}
	switch resp.Status {
	case pb.DiskImageStatus_DISK_STATUS_CREATED, pb.DiskImageStatus_DISK_STATUS_EXISTS:
		return &resp, nil
	}
	return nil, refused("create the disk of "+name, resp.FailureReason)
}

func (a *app) destroyCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "destroy NAME",
		Short:             "Stop a VM and remove its disk for good",
		Example:           "  vmc destroy termina --yes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVM(a.withDisk),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			if err := a.confirm(yes, "destroy removes all data of the VM", "Remove the disk of "+args[0]+" and everything on it?"); err != nil {
				return err
			}
			var resp pb.DestroyDiskImageResponse
			err := s.call(ctx, "DestroyDiskImage", &pb.DestroyDiskImageRequest{CryptohomeId: a.owner, VmName: args[0]}, &resp)
			if err != nil {
				return err
			}
			switch resp.Status {
			case pb.DiskImageStatus_DISK_STATUS_DESTROYED:
			case pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST:
				return withCode(ExitNotFound, fmt.Errorf("%s has no disk%s", args[0], suggestion(args[0], a.withDisk(ctx, s))))
			default:
				return refused("destroy "+args[0], resp.FailureReason)
			}
			if a.json {
				return a.printJSON(&resp)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks a person. A script has to say --yes.
func (a *app) confirm(yes bool, warning, question string) error {
	if yes {
		return nil
	}
	if a.in == nil || !term.IsTerminal(int(a.in.Fd())) {
		return withCode(ExitUsage, errors.New(warning+": confirm with --yes"))
	}
	fmt.Fprint(a.err, printable(question), " [y/N] ")
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return withCode(ExitFailed, errors.New("nothing was removed"))
	}
	return nil
}
