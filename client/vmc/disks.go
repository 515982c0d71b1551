package vmc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) createCommand() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create the disk of a VM",
		Args:  cobra.ExactArgs(1),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			bytes, err := parseSize(size)
			if err != nil {
				return withCode(ExitUsage, err)
			}
			resp, err := a.createDisk(ctx, s, args[0], bytes)
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
	cmd.Flags().StringVar(&size, "size", "", "size, such as 512M or 20G (default: nine tenths of the free space; disks are sparse)")
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
		Use:   "destroy NAME",
		Short: "Stop a VM and remove its disk for good",
		Args:  cobra.ExactArgs(1),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			if err := a.confirm(yes, args[0]); err != nil {
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
				return withCode(ExitNotFound, fmt.Errorf("%s has no disk", args[0]))
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
func (a *app) confirm(yes bool, name string) error {
	if yes {
		return nil
	}
	if a.in == nil || !term.IsTerminal(int(a.in.Fd())) {
		return withCode(ExitUsage, errors.New("destroy removes all data of the VM: confirm with --yes"))
	}
	fmt.Fprintf(a.err, "Remove the disk of %s and everything on it? [y/N] ", name)
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return withCode(ExitFailed, errors.New("nothing was removed"))
	}
	return nil
}

// parseSize reads a number of bytes with an optional suffix K, M, G or T
// (powers of 1024). Empty is zero: the service chooses.
func parseSize(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	digits, shift := strings.ToUpper(s), 0
	digits = strings.TrimSuffix(strings.TrimSuffix(digits, "B"), "I")
	for i, suffix := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(digits, suffix); ok {
			digits, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > math.MaxUint64>>shift {
		return 0, fmt.Errorf("size %q is not a number of bytes with K, M, G or T after it", s)
	}
	return n << shift, nil
}
