package tremplin

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"github.com/auberge-vm/auberge/guest/tremplin/rootfs"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
	"golang.org/x/sys/unix"
)

// progressPause is the time between two notices of how far a transfer is.
const progressPause = time.Second

// ExportContainer writes a container as an archive, in the background.
func (s *Server) ExportContainer(ctx context.Context, req *pb.ExportContainerRequest) (*pb.ExportContainerResponse, error) {
	name := req.ContainerName
	failed := func(err error) (*pb.ExportContainerResponse, error) {
		return &pb.ExportContainerResponse{Status: pb.ExportContainerResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	// First of all, so that a stream that is refused is closed.
	out, err := s.sink(req.ExportPath)
	if err != nil {
		return failed(err)
	}
	i, _, err := s.find(ctx, name)
	if err != nil {
		out.abandon()
		return failed(err)
	}
	err = s.jobs.run(name, jobExport, func(ctx context.Context) {
		e := exporting{s: s, name: name}
		err := e.do(ctx, i, out)
		p := e.progress(pb.ContainerExportProgress_DONE)
		switch {
		case err == nil:
			s.log.Info("container exported", "container", name, "files", p.InputFilesStreamed, "bytes", p.BytesExported)
		case wasCancelled(ctx):
			p.Status, p.FailureReason = pb.ContainerExportProgress_CANCELLED, "the export was cancelled"
		default:
			s.log.Error("container not exported", "container", name, "err", err)
			p.Status, p.FailureReason = pb.ContainerExportProgress_FAILED, err.Error()
		}
		s.host.export(p)
	})
	if err != nil {
		out.abandon()
		return failed(err)
	}
	return &pb.ExportContainerResponse{Status: pb.ExportContainerResponse_EXPORTING}, nil
}

// CancelExportContainer ends an export.
func (s *Server) CancelExportContainer(_ context.Context, req *pb.CancelExportContainerRequest) (*pb.CancelExportContainerResponse, error) {
	if s.jobs.cancelled(req.InProgressContainerName, jobExport) == nil {
		return &pb.CancelExportContainerResponse{Status: pb.CancelExportContainerResponse_OPERATION_NOT_FOUND}, nil
	}
	return &pb.CancelExportContainerResponse{Status: pb.CancelExportContainerResponse_CANCEL_QUEUED}, nil
}

// A sink is where an export goes. Either finish or abandon ends it.
type sink struct {
	io.Writer
	finish  func() error
	abandon func()
	// stop makes writes fail, from another goroutine.
	stop func()
}

// sink opens a path that an export names.
func (s *Server) sink(path string) (*sink, error) {
	if strings.HasPrefix(path, transferPrefix) {
		conn, err := s.moves.use(path)
		if err != nil {
			return nil, err
		}
		w := vsock.NewFrameWriter(conn)
		closing := func() { conn.Close() }
		// The host closes when it has all, or gives up.
		return &sink{Writer: w, finish: func() error { defer closing(); return w.Close() }, abandon: closing, stop: closing}, nil
	}
	return s.fileSink(path)
}

// fileSink writes a file that has no name until it is whole: whatever ends us
// before, nothing stays of it.
func (s *Server) fileSink(path string) (*sink, error) {
	if err := os.MkdirAll(s.cfg.TransferDir, 0o700); err != nil {
		return nil, err
	}
	dir, name, err := s.openTransferDir(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("cannot write %q beneath %s: %w", path, s.cfg.TransferDir, err)
	}
	f := os.NewFile(uintptr(fd), path)
	// Either is harmless after the other.
	drop := func() {
		f.Close()
		dir.Close()
	}
	return &sink{
		Writer: f,
		finish: func() error {
			defer drop()
			if err := f.Sync(); err != nil {
				return err
			}
			err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
			if err != nil {
				return fmt.Errorf("cannot give the file the name %q beneath %s: %w", path, s.cfg.TransferDir, err)
			}
			return dir.Sync()
		},
		abandon: drop,
		stop:    func() {},
	}, nil
}

type exporting struct {
	s     *Server
	name  string
	total archive.Counts
	done  archive.Counts
	bytes uint64
	told  time.Time // when a notice was sent
	was   uint64    // what had been written by then
}

func (e *exporting) do(ctx context.Context, i incus.Instance, out *sink) (err error) {
	stop := context.AfterFunc(ctx, out.stop)
	defer stop()
	defer func() {
		if err != nil {
			out.abandon()
		}
	}()
	ids, err := rootfs.ParseIDMap(i.Config["volatile.last_state.idmap"])
	if err != nil {
		return err
	}
	// A snapshot does not change, whatever runs in the container.
	snapshot := tempName("export")
	defer e.s.dropSnapshot(e.name, snapshot)
	if err := e.s.incus.CreateSnapshot(ctx, e.name, snapshot); err != nil {
		return fmt.Errorf("cannot take a snapshot of %s: %w", e.name, err)
	}
	dir := e.s.cfg.snapshotDir(e.name, snapshot)
	alive := func() error { return context.Cause(ctx) }
	if e.total, err = archive.Count(dir, alive); err != nil {
		return err
	}
	_, err = archive.Pack(e.counting(out), dir, ids.FromDisk, func(c archive.Counts) error {
		e.look(c)
		return alive()
	})
	if err == nil {
		err = alive()
	}
	if err != nil {
		return err
	}
	return out.finish()
}

// look is called often while the archive is written.
func (e *exporting) look(c archive.Counts) {
	e.done = c
	if now := time.Now(); now.Sub(e.told) >= progressPause {
		p := e.progress(pb.ContainerExportProgress_EXPORTING_STREAMING)
		p.ProgressSpeed = speed(e.told, now, e.bytes-e.was)
		e.told, e.was = now, e.bytes
		e.s.host.export(p)
	}
}

func (e *exporting) progress(s pb.ContainerExportProgress_Status) *pb.ContainerExportProgress {
	return &pb.ContainerExportProgress{
		ContainerName: e.name, Status: s,
		TotalInputFiles: e.total.Files, TotalInputBytes: e.total.Bytes,
		InputFilesStreamed: e.done.Files, InputBytesStreamed: e.done.Bytes, BytesExported: e.bytes,
	}
}

func (e *exporting) counting(w io.Writer) io.Writer { return &countingWriter{w: w, n: &e.bytes} }

type countingWriter struct {
	w io.Writer
	n *uint64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	*c.n += uint64(n)
	return n, err
}

// dropSnapshot removes an export's snapshot, although the export's time may be
// over.
func (s *Server) dropSnapshot(name, snapshot string) {
	ctx, cancel := cleaning()
	defer cancel()
	// If Incus is not there in time, the removal fails and is tried later.
	s.ensureLxd(ctx)
	s.dropSnapshotOf(ctx, name, snapshot)
}

// dropSnapshotOf removes a snapshot, now or later.
func (s *Server) dropSnapshotOf(ctx context.Context, name, snapshot string) {
	remove := func(ctx context.Context) error { return s.incus.DeleteSnapshot(ctx, name, snapshot) }
	if err := remove(ctx); err != nil && !incus.IsNotFound(err) {
		s.left.add("the snapshot "+snapshot+" of "+name, err, remove)
	}
}

// removeSnapshots removes the snapshots that exports have left.
func (s *Server) removeSnapshots(ctx context.Context, name string) {
	all, err := s.incus.Snapshots(ctx, name)
	if err != nil {
		s.log.Error("snapshots of exports are not looked for", "container", name, "err", err)
	}
	for _, sn := range all {
		if strings.HasPrefix(sn.Name, ownPrefix) {
			s.dropSnapshotOf(ctx, name, sn.Name)
		}
	}
}
