package vmc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// resizeLook is how often the service is asked how far it is.
const resizeLook = 500 * time.Millisecond

func (a *app) resizeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Change the size of a VM's disk, and of the file system on it",
		Long: "Change the size of the disk of the VM called NAME and wait until that is done. While the\n" +
			"VM runs, its file system changes with the disk; without it, a disk can become larger.\n" +
			"Being interrupted leaves the work going on: \"vmc operations\" shows it.",
		Example:           "  vmc resize termina 40G",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeVM(a.withDisk),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return withCode(ExitUsage, err)
			}
			return a.withSession(func(ctx context.Context, s *session, args []string) error {
				return a.resize(ctx, s, args[0], size)
			})(cmd, args)
		},
	}
}

func (a *app) resize(ctx context.Context, s *session, name string, size uint64) error {
	var begun pb.ResizeDiskImageResponse
	err := s.call(ctx, "ResizeDiskImage", &pb.ResizeDiskImageRequest{CryptohomeId: a.owner, VmName: name, DiskSize: size}, &begun)
	if err != nil {
		return err
	}
	done := &pb.DiskImageStatusResponse{CommandUuid: begun.CommandUuid, Status: begun.Status, FailureReason: begun.FailureReason}
	tick := time.NewTicker(resizeLook)
	defer tick.Stop()
	for done.Status == pb.DiskImageStatus_DISK_STATUS_IN_PROGRESS {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return withCode(ExitFailed, errors.New("interrupted; the disk is being resized all the same, see \"vmc operations\""))
		}
		done.Reset()
		if err := s.call(ctx, "DiskImageStatus", &pb.DiskImageStatusRequest{CommandUuid: begun.CommandUuid}, done); err != nil {
			return err
		}
	}
	switch done.Status {
	case pb.DiskImageStatus_DISK_STATUS_RESIZED:
	case pb.DiskImageStatus_DISK_STATUS_DOES_NOT_EXIST:
		return withCode(ExitNotFound, fmt.Errorf("%s has no disk%s", name, suggestion(name, a.withDisk(ctx, s))))
	default:
		return refused("resize the disk of "+name, done.FailureReason)
	}
	if a.json {
		return a.printJSON(done)
	}
	return nil
}
