package cicerone_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

// transfers takes the host's streams as tremplin does: each names itself
// first.
func (m *machine) transfers() (streams chan net.Conn, names chan string) {
	m.w.t.Helper()
	streams, names = make(chan net.Conn, 32), make(chan string, 32)
	l, err := net.Listen("unix", m.path("", 8891))
	if err != nil {
		m.w.t.Fatal(err)
	}
	done := make(chan struct{})
	m.w.t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			name, err := vsock.ReadFrame(c, 64)
			if err == nil {
				err = vsock.WriteFrame(c, []byte("ready"))
			}
			if err != nil {
				m.w.t.Error(err)
			}
			names <- string(name)
			streams <- c
		}
	}()
	return streams, names
}

func (m *machine) exported(st tpb.ContainerExportProgress_Status) {
	m.w.t.Helper()
	must(m.w.t)(m.tremplin.UpdateExportStatus(m.w.t.Context(), &tpb.ContainerExportProgress{ContainerName: "penguin", Status: st, BytesExported: 9}))
}

// A container goes to the caller's file and comes back from it.
func TestTransfers(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	streams, names := m.transfers()
	data := bytes.Repeat([]byte("container"), 20000)

	path := filepath.Join(w.dir, "export")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", file); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if got, want := last[*tpb.ExportContainerRequest](f).GetExportPath(), "transfer:"+<-names; got != want {
		t.Errorf("path %q, the stream is %q", got, want)
	}
	if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", file); err == nil {
		t.Error("a second export begins")
	}
	c := <-streams
	out := vsock.NewFrameWriter(c)
	m.exported(tpb.ContainerExportProgress_EXPORTING_STREAMING)
	if g := next[*pb.ExportLxdContainerProgressSignal](w, "ExportLxdContainerProgress"); g.Status != pb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING || g.BytesExported != 9 {
		t.Errorf("%v", g)
	}
	if _, err := out.Write(data); err != nil {
		t.Error(err)
	}
	// tremplin says that it is done; the end of the data comes after that.
	m.exported(tpb.ContainerExportProgress_DONE)
	w.quiet()
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if g := next[*pb.ExportLxdContainerProgressSignal](w, "ExportLxdContainerProgress"); g.Status != pb.ExportLxdContainerProgressSignal_DONE {
		t.Errorf("%v", g)
	}
	c.Close()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	file, err = os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ImportContainer(t.Context(), subject(), "termina", "penguin", file); err != nil {
		t.Fatal(err)
	}
	file.Close()
	<-names
	c = <-streams
	if got, err := io.ReadAll(vsock.NewFrameReader(c)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	must(t)(m.tremplin.UpdateImportStatus(t.Context(), &tpb.ContainerImportProgress{ContainerName: "penguin", Status: tpb.ContainerImportProgress_DONE, ProgressPercent: 100}))
	if g := next[*pb.ImportLxdContainerProgressSignal](w, "ImportLxdContainerProgress"); g.Status != pb.ImportLxdContainerProgressSignal_DONE {
		t.Errorf("%v", g)
	}
	c.Close()
	w.quiet()
}

// exportToPipe begins an export, and returns where it is read and its stream
// with the VM.
func exportToPipe(t *testing.T, s *cicerone.Service, streams <-chan net.Conn, names <-chan string) (*os.File, net.Conn) {
	t.Helper()
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, exportTo(t, s, p, streams, names)
}

// exportTo begins an export to a file, which it closes, and returns its stream
// with the VM.
func exportTo(t *testing.T, s *cicerone.Service, f *os.File, streams <-chan net.Conn, names <-chan string) net.Conn {
	t.Helper()
	defer f.Close()
	if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", f); err != nil {
		t.Fatal(err)
	}
	<-names
	return <-streams
}

// Each way to break has one last signal that says why, and the next try works.
func TestTransfersThatBreak(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	streams, names := m.transfers()
	begin := func() (*os.File, net.Conn) { return exportToPipe(t, s, streams, names) }
	end := func() *pb.ExportLxdContainerProgressSignal {
		t.Helper()
		return next[*pb.ExportLxdContainerProgressSignal](w, "ExportLxdContainerProgress")
	}
	// Nobody reads what is exported.
	r, c := begin()
	r.Close()
	vsock.NewFrameWriter(c).Write([]byte("container"))
	if g := end(); g.Status != pb.ExportLxdContainerProgressSignal_FAILED || !strings.Contains(g.FailureReason, "broken pipe") {
		t.Errorf("%v", g)
	}
	eventually(t, "tremplin is told", func() bool { return last[*tpb.CancelExportContainerRequest](f) != nil })
	m.exported(tpb.ContainerExportProgress_CANCELLED) // which is its answer
	c.Close()
	// The stream breaks, and tremplin says why.
	r, c = begin()
	c.Close()
	must(t)(m.tremplin.UpdateExportStatus(t.Context(), &tpb.ContainerExportProgress{ContainerName: "penguin", Status: tpb.ContainerExportProgress_FAILED, FailureReason: "bad disk"}))
	if g := end(); g.Status != pb.ExportLxdContainerProgressSignal_FAILED || g.FailureReason != "bad disk" {
		t.Errorf("%v", g)
	}
	r.Close()
	// Somebody cancels one whose pipe nobody empties.
	r, c = begin()
	resp, err := s.CancelExportLxdContainer(t.Context(), subject(), &pb.CancelExportLxdContainerRequest{VmName: "termina", InProgressContainerName: "penguin"})
	if err != nil || resp.Status != pb.CancelExportLxdContainerResponse_CANCEL_QUEUED {
		t.Errorf("%v, %v", resp, err)
	}
	m.exported(tpb.ContainerExportProgress_CANCELLED)
	if g := end(); g.Status != pb.ExportLxdContainerProgressSignal_CANCELLED {
		t.Errorf("%v", g)
	}
	if _, err := io.ReadAll(r); err != nil { // the pipe has an end
		t.Error(err)
	}
	c.Close()
	r.Close()
	// A device is no place for a container.
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", null); err == nil {
		t.Error("a device is taken")
	}
	// The service goes; the next one knows that the file went with it, and tremplin
	// hears it from that one: from its stream it may not.
	r, c = begin()
	s.Close()
	f.set(func() { f.calls = nil })
	s = w.serve()
	eventually(t, "tremplin is told", func() bool { return last[*tpb.CancelExportContainerRequest](f) != nil })
	w.quiet()
	m.exported(tpb.ContainerExportProgress_CANCELLED)
	if g := end(); g.Status != pb.ExportLxdContainerProgressSignal_FAILED || !strings.Contains(g.FailureReason, "anew") {
		t.Errorf("%v", g)
	}
	r.Close()
	c.Close()
	r, c = begin()
	c.Close()
	r.Close()
	m.halt()
	if _, err := s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}); err != nil {
		t.Fatal(err)
	}
	if g := end(); g.Status != pb.ExportLxdContainerProgressSignal_FAILED {
		t.Errorf("%v", g)
	}
	w.quiet()
}
