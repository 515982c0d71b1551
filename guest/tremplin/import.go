package tremplin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
	"golang.org/x/sys/unix"
)

// spareSpace is what an import leaves free for the containers that are there.
const spareSpace = 64 << 20

// Marks of an import that replaces a container.
const (
	finalKey = "user.auberge.final" // one that is whole and only lacks this name
	awayKey  = "user.auberge.away"  // one that had this name and is to go
)

// ImportContainer makes a container of an archive, in the background. A
// container of that name is replaced, at the very end.
func (s *Server) ImportContainer(ctx context.Context, req *pb.ImportContainerRequest) (*pb.ImportContainerResponse, error) {
	name := req.ContainerName
	failed := func(err error) (*pb.ImportContainerResponse, error) {
		return &pb.ImportContainerResponse{Status: pb.ImportContainerResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	i, missing, err := s.find(ctx, name)
	switch {
	case err == nil:
		err = checkReplaceable(i)
	case missing:
		err = nil
	}
	if err != nil {
		return failed(err)
	}
	from, err := s.origin(req.ImportPath)
	if err != nil {
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

func checkReplaceable(i incus.Instance) error {
	if i.Status != incus.Stopped {
		return fmt.Errorf("the container %s runs: stop it before it is replaced", i.Name)
	}
	return nil
}

// An origin is where an import comes from.
type origin struct {
	io.Reader
	size     uint64 // 0 where nobody knows it
	unpacked uint64 // an estimate of the same
	close    func() // also from another goroutine
}

// origin opens a path that an import names.
func (s *Server) origin(path string) (*origin, error) {
	if strings.HasPrefix(path, transferPrefix) {
		conn, err := s.moves.use(path)
		if err != nil {
			return nil, err
		}
		return &origin{Reader: vsock.NewFrameReader(conn), close: func() { conn.Close() }}, nil
	}
	f, err := s.openTransfer(path)
	if err != nil {
		return nil, err
	}
	o := &origin{Reader: f, close: func() { f.Close() }}
	if info, err := f.Stat(); err == nil {
		o.size = uint64(info.Size())
		o.unpacked = gzipSize(f, info.Size())
	}
	return o, nil
}

// maxRatio is how much smaller gzip can make anything.
const maxRatio = 1032

// gzipSize is what the end of a gzip file says of its content, which holds
// below 4 GiB only, and for files that are whole.
func gzipSize(f *os.File, size int64) uint64 {
	var head [2]byte
	var tail [4]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || head != [2]byte{0x1f, 0x8b} {
		return uint64(size)
	}
	if _, err := f.ReadAt(tail[:], size-int64(len(tail))); err != nil {
		return uint64(size)
	}
	said := uint64(binary.LittleEndian.Uint32(tail[:]))
	if said > uint64(size)*maxRatio {
		return uint64(size)
	}
	return max(said, uint64(size))
}

type architectureError struct{ device, container string }

func (e *architectureError) Error() string {
	return fmt.Sprintf("the container is of the architecture %s, this VM of %s", e.container, e.device)
}

type spaceError struct{ available, required uint64 }

func (e *spaceError) Error() string {
	return fmt.Sprintf("the container needs %d MiB, and the VM's disk has %d MiB: make the disk larger", e.required>>20, e.available>>20)
}

type importing struct {
	s    *Server
	name string
	from *origin
	read uint64
	told time.Time
}

func (m *importing) do(ctx context.Context) error {
	if err := m.room(m.from.size + m.from.unpacked); err != nil {
		return err
	}
	end := m.s.arrival()
	image, counts, err := m.upload(ctx)
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
	temp := tempName("import")
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
func (m *importing) upload(ctx context.Context) (image string, counts archive.Counts, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, m.from.close)
	defer stop()
	pr, pw := io.Pipe()
	cleaned := make(chan error, 1)
	go func() {
		var err error
		_, counts, err = archive.Clean(pw, &countingReader{r: m.from, n: &m.read}, archive.Check{
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
	pr.Close()
	<-cleaned
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return "", counts, cause
	}
	if err != nil {
		return "", counts, fmt.Errorf("Incus does not take the archive: %w", err)
	}
	return image, counts, nil
}

// look is called often while the archive is read.
func (m *importing) look(ctx context.Context, _ archive.Counts) error {
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
	// What is compressed grows again; this only ends what cannot end well.
	return m.room(0)
}

// tell tells the host how far the import is, once a second at most.
func (m *importing) tell(s pb.ContainerImportProgress_Status, percent uint32) {
	if time.Since(m.told) < progressPause {
		return
	}
	m.told = time.Now()
	m.s.host.imported(&pb.ContainerImportProgress{ContainerName: m.name, Status: s, ProgressPercent: percent})
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

// replace gives the new container its name, and only then removes the old one.
// If we end in the middle, removeLeftovers does the rest.
func (m *importing) replace(ctx context.Context, temp string) error {
	s := m.s
	old, missing, err := s.find(ctx, m.name)
	switch {
	case missing:
		return s.finish(ctx, temp, m.name)
	case err != nil:
		return err
	}
	if err := checkReplaceable(old); err != nil {
		return err
	}
	if err := s.incus.Change(ctx, temp, map[string]string{finalKey: m.name}, nil); err != nil {
		return err
	}
	// Under its other name it looks like a leftover.
	if err := s.incus.Change(ctx, m.name, map[string]string{awayKey: m.name}, nil); err != nil {
		return err
	}
	away := tempName("old")
	if err := s.incus.Rename(ctx, m.name, away); err != nil {
		return err
	}
	if err := s.finish(ctx, temp, m.name); err != nil {
		back, cancel := cleaning()
		defer cancel()
		if undo := s.putBack(back, away, m.name); undo != nil {
			s.left.add("the name of "+m.name, undo, func(ctx context.Context) error {
				err := s.incus.Rename(ctx, away, m.name)
				if incus.IsConflict(err) {
					return nil // there is another one by now
				}
				return err
			})
			return errors.Join(err, fmt.Errorf("the old container is called %s until Incus lets it have its name back: %w", away, undo))
		}
		return err
	}
	if err := s.incus.Change(ctx, m.name, map[string]string{finalKey: ""}, nil); err != nil {
		s.log.Warn("a mark stays in the container's settings", "container", m.name, "err", err)
	}
	s.discardNow(away)
	return nil
}

func (s *Server) putBack(ctx context.Context, away, name string) error {
	if err := s.ensureLxd(ctx); err != nil {
		return err
	}
	return s.incus.Rename(ctx, away, name)
}

// finishReplaced gives containers their names whose import ended in the middle
// of that.
func (s *Server) finishReplaced(ctx context.Context, all []incus.Instance) {
	for _, r := range unfinished(all) {
		if err := s.incus.Rename(ctx, r.from, r.to); err != nil {
			s.log.Error("a container keeps a name that is not its own", "container", r.from, "name", r.to, "err", err)
			continue
		}
		s.log.Info("an import that was cut short has left a whole container", "container", r.to, "was", r.from)
	}
}

type renaming struct{ from, to string }

// unfinished tells what is to be renamed so that nothing is lost: where nobody
// has a name, the new container gets it, or else the old one gets it back.
func unfinished(all []incus.Instance) []renaming {
	taken := map[string]bool{}
	for _, i := range all {
		taken[i.Name] = true
	}
	var list []renaming
	for _, key := range []string{finalKey, awayKey} {
		for _, i := range all {
			name := i.Config[key]
			if !strings.HasPrefix(i.Name, ownPrefix) || checkName(name) != nil || taken[name] {
				continue
			}
			taken[name] = true
			list = append(list, renaming{from: i.Name, to: name})
		}
	}
	return list
}

type countingReader struct {
	r io.Reader
	n *uint64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += uint64(n)
	return n, err
}
