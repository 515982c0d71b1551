package vmc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
)

func (a *app) exportContainerCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "export-container VM CONTAINER FILE",
		Short: "Write a container to a file",
		Long: "Write the container to FILE, a compressed tar archive that \"vmc import-container\" reads, or to\n" +
			"standard output with \"-\". A FILE that exists is refused without --force, and replaced only when\n" +
			"all is written. Being interrupted cancels it, and nothing is left of it. Only you can read the\n" +
			"file: everything in the container is in it.",
		Example:           "  vmc export-container termina penguin penguin.tar.gz",
		Args:              cobra.ExactArgs(3),
		ValidArgsFunction: a.completeContainerFile(),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace FILE if it exists")
	cmd.RunE = a.withContainer(func(ctx context.Context, f *follower, name string, args []string) error {
		if args[0] == "-" {
			out, ok := a.out.(*os.File)
			if !ok {
				return withCode(ExitUsage, errors.New("standard output is no file"))
			}
			return a.exportTo(ctx, f, name, out)
		}
		return a.exportToFile(ctx, f, name, args[0], force)
	})
	return cmd
}

// exportToFile writes beside the file, which appears when all is there.
func (a *app) exportToFile(ctx context.Context, f *follower, name, path string, force bool) error {
	exists := withCode(ExitFailed, fmt.Errorf("%s exists already: give another name, or --force to replace it", path))
	if _, err := os.Lstat(path); !force && !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return withCode(ExitFailed, err)
		}
		return exists
	}
	part, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*")
	if err != nil {
		return withCode(ExitFailed, err)
	}
	defer os.Remove(part.Name()) // no more than an error when it has its name
	defer part.Close()
	if err := a.exportTo(ctx, f, name, part); err != nil {
		return err
	}
	if err := part.Sync(); err != nil {
		return withCode(ExitFailed, err)
	}
	if force {
		err = os.Rename(part.Name(), path)
	} else if err = unix.Renameat2(unix.AT_FDCWD, part.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); errors.Is(err, unix.EINVAL) {
		err = os.Link(part.Name(), path) // a file system that cannot do the other
	}
	if errors.Is(err, fs.ErrExist) {
		return exists
	}
	if err != nil {
		return withCode(ExitFailed, fmt.Errorf("give the archive its name %s: %w", path, err))
	}
	if a.json {
		return a.printValue(map[string]any{"vm_name": f.vm, "container_name": name, "file": path})
	}
	fmt.Fprintf(a.out, "%s is in %s\n", printable(name), printable(path))
	return nil
}

// exportTo has a container written to an open file.
func (a *app) exportTo(ctx context.Context, f *follower, name string, out *os.File) error {
	what := "export the container " + name
	r := a.report(name)
	defer r.end()
	r.say("beginning", -1)
	// An interruption comes after the beginning, which takes no time: only
	// what has begun can be cancelled.
	err := f.s.plain(context.WithoutCancel(ctx), "ExportContainer", []any{f.vm, a.owner, name, godbus.UnixFD(out.Fd())})
	if err != nil {
		return a.unknownContainer(ctx, f, name, err)
	}
	err = f.await(ctx, a.transfer(f, name, what, "CancelExportLxdContainer", func(m proto.Message) (bool, error) {
		s, ok := m.(*ct.ExportLxdContainerProgressSignal)
		if !ok || s.ContainerName != name {
			return false, nil
		}
		switch s.Status {
		case ct.ExportLxdContainerProgressSignal_DONE:
			return true, nil
		case ct.ExportLxdContainerProgressSignal_FAILED, ct.ExportLxdContainerProgressSignal_CANCELLED:
			return false, failed(what, ended(s.Status, s.FailureReason))
		case ct.ExportLxdContainerProgressSignal_UNKNOWN:
			return false, nil
		}
		r.say("exporting", percentOf(s.InputBytesStreamed, s.TotalInputBytes, s.ProgressPercent))
		return false, nil
	}))
	r.end()
	return err
}

// percentOf is how much of all has been done.
func percentOf(done, all uint64, otherwise uint32) int {
	if all == 0 {
		return int(min(otherwise, 100))
	}
	return int(min(float64(done)/float64(all), 1) * 100)
}

// known is how many percent have been done, or that nobody knows: where there
// is no whole that they could be of, none are told.
func known(percent uint32, whole bool) int {
	if percent == 0 && !whole {
		return -1
	}
	return int(min(percent, 100))
}

func (a *app) importContainerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import-container VM CONTAINER FILE",
		Short: "Make a container of what a file holds",
		Long: "Make the CONTAINER of the archive FILE that \"vmc export-container\" has written; \"-\" reads it\n" +
			"from standard input. A container of that name is replaced when all has been read and is in\n" +
			"order. Being interrupted cancels it. The container is not started.",
		Example:           "  vmc import-container termina penguin penguin.tar.gz",
		Args:              cobra.ExactArgs(3),
		ValidArgsFunction: a.completeContainerFile(),
		RunE: a.withContainer(func(ctx context.Context, f *follower, name string, args []string) error {
			in := a.in
			if args[0] != "-" {
				var err error
				if in, err = os.Open(args[0]); err != nil {
					return withCode(ExitFailed, err)
				}
				defer in.Close()
			}
			if in == nil {
				return withCode(ExitUsage, errors.New("there is no standard input to read"))
			}
			if fi, err := in.Stat(); err == nil && fi.IsDir() {
				return withCode(ExitFailed, fmt.Errorf("%s is a directory, and no archive of a container", args[0]))
			}
			return a.importFrom(ctx, f, name, in)
		}),
	}
}

func (a *app) importFrom(ctx context.Context, f *follower, name string, in *os.File) error {
	what := "import the container " + name
	fi, err := in.Stat()
	sized := err == nil && fi.Mode().IsRegular()
	if err := a.startLxd(ctx, f); err != nil {
		return err
	}
	r := a.report(name)
	defer r.end()
	r.say("beginning", -1)
	if err := f.s.plain(context.WithoutCancel(ctx), "ImportContainer", []any{f.vm, a.owner, name, godbus.UnixFD(in.Fd())}); err != nil {
		return err
	}
	err = f.await(ctx, a.transfer(f, name, what, "CancelImportLxdContainer", func(m proto.Message) (bool, error) {
		s, ok := m.(*ct.ImportLxdContainerProgressSignal)
		if !ok || s.ContainerName != name {
			return false, nil
		}
		switch s.Status {
		case ct.ImportLxdContainerProgressSignal_DONE:
			return true, nil
		case ct.ImportLxdContainerProgressSignal_IMPORTING_UPLOAD:
			r.say("reading", known(s.ProgressPercent, sized))
		case ct.ImportLxdContainerProgressSignal_IMPORTING_UNPACK:
			r.say("unpacking", known(s.ProgressPercent, false))
		case ct.ImportLxdContainerProgressSignal_UNKNOWN:
		case ct.ImportLxdContainerProgressSignal_FAILED_ARCHITECTURE:
			return false, failed(what, fmt.Errorf("it is for %s processors, and this VM has %s", s.ArchitectureContainer, s.ArchitectureDevice))
		case ct.ImportLxdContainerProgressSignal_FAILED_SPACE:
			return false, failed(what, fmt.Errorf("the VM's disk has %s free, and the container needs at least %s; \"vmc resize %s SIZE\" makes the disk larger",
				bytesWord(s.AvailableSpace), bytesWord(s.MinRequiredSpace), f.vm))
		default:
			return false, failed(what, ended(s.Status, s.FailureReason))
		}
		return false, nil
	}))
	r.end()
	if err != nil {
		return err
	}
	return a.done("%s is imported", name)
}

// transfer is a transfer as work. It cannot outlive the vm_cicerone that moves
// its bytes, nor the VM.
func (a *app) transfer(f *follower, name, what, cancel string, hear func(proto.Message) (bool, error)) work {
	return work{
		what: what,
		hear: func(_ string, m proto.Message) (bool, error) { return hear(m) },
		look: func(ctx context.Context, again bool) (bool, error) {
			if again {
				return false, errors.New("vm_cicerone was restarted in the middle: do it again")
			}
			_, err := listContainers(ctx, f.s, f.vm, a.owner)
			return false, err
		},
		cancel: func(ctx context.Context) error {
			if cancel == "CancelExportLxdContainer" {
				var resp ct.CancelExportLxdContainerResponse
				err := f.s.call(ctx, cancel, &ct.CancelExportLxdContainerRequest{VmName: f.vm, OwnerId: a.owner, InProgressContainerName: name}, &resp)
				if err == nil && resp.Status == ct.CancelExportLxdContainerResponse_FAILED {
					err = reason(resp.FailureReason)
				}
				return err
			}
			var resp ct.CancelImportLxdContainerResponse
			err := f.s.call(ctx, cancel, &ct.CancelImportLxdContainerRequest{VmName: f.vm, OwnerId: a.owner, InProgressContainerName: name}, &resp)
			if err == nil && resp.Status == ct.CancelImportLxdContainerResponse_FAILED {
				err = reason(resp.FailureReason)
			}
			return err
		},
	}
}
