package tremplin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"golang.org/x/sys/unix"
)

// spareSpace is what an import leaves free for the containers that are there.
const spareSpace = 64 << 20

// ImportContainer makes a container of an archive, in the background. A
// container of that name is replaced, at the very end.
func (s *Server) ImportContainer(ctx context.Context, req *pb.ImportContainerRequest) (*pb.ImportContainerResponse, error) {
	name := req.ContainerName
	failed := func(err error) (*pb.ImportContainerResponse, error) {
		return &pb.ImportContainerResponse{Status: pb.ImportContainerResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	// First of all, so that a stream that is refused is closed.
	from, err := s.origin(req.ImportPath)
	if err != nil {
		return failed(err)
	}
	i, missing, err := s.find(ctx, name)
	switch {
	case err == nil:
		err = checkReplaceable(i)
	case missing:
		err = nil
	}
	if err != nil {
		from.close()
		return failed(err)
	}
	err = s.jobs.run(name, jobImport, func(ctx context.Context) {
		m := importing{s: s, name: name, from: from}
		err := m.do(ctx)
		from.close()
		p := &pb.ContainerImportProgress{ContainerName: name, Status: pb.ContainerImportProgress_DONE, ProgressPercent: 100}
		var wrong *architectureError
		var full *spaceError
		switch {
		case err == nil:
			s.log.Info("container imported", "container", name)
			s.host.imported(p)
			return
		case wasCancelled(ctx):
			p.Status, err = pb.ContainerImportProgress_CANCELLED, errors.New("the import was cancelled")
		case errors.As(err, &wrong):
			p.Status, p.ArchitectureDevice, p.ArchitectureContainer = pb.ContainerImportProgress_FAILED_ARCHITECTURE, wrong.device, wrong.container
		case errors.As(err, &full):
			p.Status, p.DiskSpaceAvailableBytes, p.DiskSpaceRequiredBytes = pb.ContainerImportProgress_FAILED_SPACE, full.available, full.required
		default:
			p.Status = pb.ContainerImportProgress_FAILED
		}
		s.log.Error("container not imported", "container", name, "err", err)
		p.ProgressPercent, p.FailureReason = 0, err.Error()
		s.host.imported(p)
	})
	if err != nil {
		from.close()
		return failed(err)
	}
	return &pb.ImportContainerResponse{Status: pb.ImportContainerResponse_IMPORTING}, nil
}

// CancelImportContainer ends an import.
func (s *Server) CancelImportContainer(_ context.Context, req *pb.CancelImportContainerRequest) (*pb.CancelImportContainerResponse, error) {
	if s.jobs.cancelled(req.InProgressContainerName, jobImport) == nil {
		return &pb.CancelImportContainerResponse{Status: pb.CancelImportContainerResponse_OPERATION_NOT_FOUND}, nil
	}
	return &pb.CancelImportContainerResponse{Status: pb.CancelImportContainerResponse_CANCEL_QUEUED}, nil
}

type architectureError struct{ device, container string }

func (e *architectureError) Error() string {
	return fmt.Sprintf("the container is of the architecture %s, this VM of %s", e.container, e.device)
}

// A spaceError has what is free, and what is known to be needed beside what the
// import has on the disk already.
type spaceError struct{ available, required uint64 }

func (e *spaceError) Error() string {
	return fmt.Sprintf("the container needs at least %d MiB, and the VM's disk has %d MiB free: make the disk larger", e.required>>20, e.available>>20)
}

type importing struct {
	s    *Server
	name string
	from *origin
	read uint64
	told time.Time // when a notice was sent
	was  uint64    // what had been read by then
}

func (m *importing) do(ctx context.Context) error {
	// Once as Incus gets it, and once as a container.
	if err := m.room(2 * m.from.unpacked); err != nil {
		return err
	}
	end := m.s.arrival()
	temp := tempName("import")
	image, counts, err := m.upload(ctx, temp)
	if err != nil {
		end(err)
		return err
	}
	release := m.s.passing(image)
	defer release()
	end(nil)
	if err := m.room(counts.Bytes); err != nil {
		return err
	}
	m.told = time.Time{}
	err = m.s.unpack(ctx, temp, image, map[string]string{setUpKey: "yes"}, func(incus.Operation) error {
		m.tell(pb.ContainerImportProgress_IMPORTING_UNPACK, 0)
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.replace(ctx, temp); err != nil {
		m.s.discardNow(temp)
		return err
	}
	return nil
}

// room tells whether the disk has so much left.
func (m *importing) room(need uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(m.s.cfg.IncusDir, &st); err != nil {
		return err
	}
	available, required := st.Bavail*uint64(st.Bsize), need+spareSpace
	if available < required {
		return &spaceError{available: available, required: required}
	}
	return nil
}

// upload gives Incus the archive, cleaned on the way.
func (m *importing) upload(ctx context.Context, mark string) (image string, counts archive.Counts, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, m.from.close)
	defer stop()
	pr, pw := io.Pipe()
	cleaned := make(chan error, 1)
	go func() {
		var err error
		_, counts, err = archive.Clean(pw, &countingReader{r: m.from, n: &m.read}, archive.Check{
			Mark:     mark,
			Metadata: checkArchitecture,
			Progress: func(c archive.Counts) error { return m.look(ctx, c) },
		})
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			// The upload's own error would only say that it broke off.
			cancel(err)
		}
		pw.CloseWithError(err)
		cleaned <- err
	}()
	image, err = m.s.incus.Upload(ctx, pr, url.Values{passingKey: {"import"}}.Encode())
	if err != nil {
		// The archive may be where nothing comes, and its reader with it.
		cancel(fmt.Errorf("Incus does not take the archive: %w", err))
	}
	pr.Close()
	<-cleaned
	if err != nil {
		return "", counts, context.Cause(ctx)
	}
	return image, counts, nil
}

// look is called often while the archive is read.
func (m *importing) look(ctx context.Context, c archive.Counts) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if time.Since(m.told) < progressPause {
		return nil
	}
	percent := uint32(0)
	if m.from.size > 0 {
		percent = uint32(min(m.read*100/m.from.size, 100))
	}
	m.tell(pb.ContainerImportProgress_IMPORTING_UPLOAD, percent)
	// All that was read is unpacked once more, and who knows what is to come:
	// this only ends what cannot end well.
	return m.room(c.Bytes)
}

// tell tells the host how far the import is, once a second at most.
func (m *importing) tell(s pb.ContainerImportProgress_Status, percent uint32) {
	now := time.Now()
	if now.Sub(m.told) < progressPause {
		return
	}
	p := &pb.ContainerImportProgress{ContainerName: m.name, Status: s, ProgressPercent: percent, ProgressSpeed: speed(m.told, now, m.read-m.was)}
	m.told, m.was = now, m.read
	m.s.host.imported(p)
}

// architectures are the names of ours, Incus' first.
var architectures = map[string][]string{
	"amd64": {"x86_64", "amd64"}, "arm64": {"aarch64", "arm64"}, "riscv64": {"riscv64"},
}

func checkArchitecture(md archive.Metadata) error {
	own := architectures[runtime.GOARCH]
	for _, a := range own {
		if a == md.Architecture {
			return nil
		}
	}
	return &architectureError{device: own[0], container: md.Architecture}
}
