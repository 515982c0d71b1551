package cicerone_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

// exporting is the next signal, which must be about an export of penguin.
func exporting(w *world) *pb.ExportLxdContainerProgressSignal {
	w.t.Helper()
	return next[*pb.ExportLxdContainerProgressSignal](w, "ExportLxdContainerProgress")
}

// lastOf is the last signal of an export: that it goes on is told before.
func lastOf(w *world) *pb.ExportLxdContainerProgressSignal {
	w.t.Helper()
	for {
		if g := exporting(w); g.Status != pb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING {
			return g
		}
	}
}

// goesOn fails unless an export is said to go on so many times.
func goesOn(w *world, times int) {
	w.t.Helper()
	for range times {
		if g := exporting(w); g.Status != pb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING || g.BytesExported != 9 {
			w.t.Fatalf("%v", g)
		}
	}
}

func cancelExport(t *testing.T, s *cicerone.Service) {
	t.Helper()
	r, err := s.CancelExportLxdContainer(t.Context(), subject(), &pb.CancelExportLxdContainerRequest{VmName: "termina", InProgressContainerName: "penguin"})
	if err != nil || r.Status != pb.CancelExportLxdContainerResponse_CANCEL_QUEUED {
		t.Errorf("%v, %v", r, err)
	}
}

// A disk that takes long is no failure of an export whose data is all there;
// it goes on, and can be cancelled.
func TestAnExportWaitsForTheDisk(t *testing.T) {
	cicerone.StreamTimes(t, 10*time.Millisecond, time.Minute, time.Minute)
	begun, free := make(chan struct{}, 10), make(chan struct{})
	cicerone.SlowDisk(t, func(f *os.File) error {
		begun <- struct{}{}
		<-free
		return f.Sync()
	})
	w := newWorld(t)
	s := w.serve()
	defer func() {
		select {
		case <-free:
		default:
			close(free)
		}
	}()
	m, f := w.up(s, "termina", 33)
	streams, names := m.transfers()
	path := filepath.Join(w.dir, "export")
	begin := func() {
		t.Helper()
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		c := exportTo(t, s, file, streams, names)
		defer c.Close()
		out := vsock.NewFrameWriter(c)
		if _, err := out.Write([]byte("container")); err != nil {
			t.Error(err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
		<-begun
		// Twice is no more than once.
		m.exported(tpb.ContainerExportProgress_DONE)
		m.exported(tpb.ContainerExportProgress_DONE)
		goesOn(w, 3)
	}
	// tremplin has nothing left to cancel.
	begin()
	cancelExport(t, s)
	if g := lastOf(w); g.Status != pb.ExportLxdContainerProgressSignal_CANCELLED {
		t.Errorf("%v", g)
	}
	if last[*tpb.CancelExportContainerRequest](f) != nil {
		t.Error("tremplin is to cancel what it has done")
	}
	w.quiet()

	begin()
	// What tremplin has done is not lost with it.
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	for started := false; !started; {
		select {
		case g := <-w.signals:
			if e, ok := g.msg.(*pb.ExportLxdContainerProgressSignal); ok && e.Status != pb.ExportLxdContainerProgressSignal_EXPORTING_STREAMING {
				t.Errorf("%v", e)
			}
			started = g.name == "TremplinStarted"
		case <-time.After(patience):
			t.Fatal("tremplin did not start anew")
		}
	}
	close(free)
	if g := lastOf(w); g.Status != pb.ExportLxdContainerProgressSignal_DONE {
		t.Errorf("%v", g)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "container" {
		t.Errorf("%q, %v", got, err)
	}
	w.quiet()
}

// What waits for the caller waits; what waits for a VM that has said that it is
// done does not.
func TestAnExportWaitsForWhoReadsIt(t *testing.T) {
	cicerone.StreamTimes(t, time.Second, time.Minute, time.Minute)
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	streams, names := m.transfers()
	begin := func() (*os.File, net.Conn) { return exportToPipe(t, s, streams, names) }
	r, c := begin()
	data := bytes.Repeat([]byte("container"), 100000)
	sent := make(chan error, 1)
	go func() {
		defer c.Close()
		out := vsock.NewFrameWriter(c)
		_, err := out.Write(data)
		if err == nil {
			err = out.Close()
		}
		sent <- err
	}()
	eventually(t, "the pipe is full", func() bool {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return n >= 60<<10
	})
	m.exported(tpb.ContainerExportProgress_DONE)
	goesOn(w, 1)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if g := lastOf(w); g.Status != pb.ExportLxdContainerProgressSignal_DONE {
		t.Errorf("%v", g)
	}
	r.Close()

	r, c = begin()
	defer r.Close()
	defer c.Close()
	m.exported(tpb.ContainerExportProgress_DONE)
	if g := lastOf(w); g.Status != pb.ExportLxdContainerProgressSignal_FAILED || !strings.Contains(g.FailureReason, "does not end") {
		t.Errorf("%v", g)
	}
	w.quiet()
}

// Who cancels learns that it was cancelled, however long the VM takes to tidy
// up and whatever became of the stream before that.
func TestACancelledExportIsCancelled(t *testing.T) {
	begin := func(t *testing.T, w *world, s *cicerone.Service, streams chan net.Conn, container string) net.Conn {
		t.Helper()
		file, err := os.Create(filepath.Join(w.dir, container))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := s.ExportContainer(t.Context(), subject(), "termina", container, file); err != nil {
			t.Fatal(err)
		}
		return <-streams
	}
	t.Run("the VM takes long", func(t *testing.T) {
		cicerone.StreamTimes(t, time.Minute, 100*time.Millisecond, time.Minute)
		w := newWorld(t)
		s := w.serve()
		m, _ := w.up(s, "termina", 33)
		streams, _ := m.transfers()
		c := begin(t, w, s, streams, "penguin")
		cancelExport(t, s)
		c.Close()
		begin(t, w, s, streams, "other").Close() // nobody cancels it, and nobody says why it broke
		if g := exporting(w); g.ContainerName != "other" || g.Status != pb.ExportLxdContainerProgressSignal_FAILED || !strings.Contains(g.FailureReason, "broke") {
			t.Errorf("%v", g)
		}
		m.exported(tpb.ContainerExportProgress_CANCELLED)
		if g := exporting(w); g.ContainerName != "penguin" || g.Status != pb.ExportLxdContainerProgressSignal_CANCELLED {
			t.Errorf("%v", g)
		}
		w.quiet()
	})
	t.Run("it is cancelled after the stream broke, and the VM says no more", func(t *testing.T) {
		cicerone.StreamTimes(t, time.Minute, 3*time.Second, 50*time.Millisecond)
		w := newWorld(t)
		s := w.serve()
		m, _ := w.up(s, "termina", 33)
		streams, _ := m.transfers()
		begin(t, w, s, streams, "penguin").Close()
		cancelExport(t, s)
		if g := exporting(w); g.Status != pb.ExportLxdContainerProgressSignal_CANCELLED {
			t.Errorf("%v", g)
		}
		w.quiet()
	})
	t.Run("its reader goes as well", func(t *testing.T) {
		cicerone.StreamTimes(t, time.Minute, time.Minute, time.Minute)
		w := newWorld(t)
		s := w.serve()
		m, f := w.up(s, "termina", 33)
		streams, _ := m.transfers()
		r, p, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := s.ExportContainer(t.Context(), subject(), "termina", "penguin", p); err != nil {
			t.Fatal(err)
		}
		c := <-streams
		defer c.Close()
		cancelExport(t, s)
		r.Close()
		if _, err := vsock.NewFrameWriter(c).Write([]byte("container")); err != nil {
			t.Error(err)
		}
		m.exported(tpb.ContainerExportProgress_CANCELLED)
		if g := exporting(w); g.Status != pb.ExportLxdContainerProgressSignal_CANCELLED {
			t.Errorf("%v", g)
		}
		if last[*tpb.CancelExportContainerRequest](f) == nil {
			t.Error("tremplin does not know")
		}
		w.quiet()
	})
}

// Of a file whose size is known it is told how much of it has been read, as the
// VM cannot know it. It never goes back.
func TestAnImportsPercent(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	streams, _ := m.transfers()
	report := func(st tpb.ContainerImportProgress_Status, percent uint32, speed uint64) *pb.ImportLxdContainerProgressSignal {
		t.Helper()
		must(t)(m.tremplin.UpdateImportStatus(t.Context(), &tpb.ContainerImportProgress{ContainerName: "penguin", Status: st, ProgressPercent: percent, ProgressSpeed: speed}))
		g := next[*pb.ImportLxdContainerProgressSignal](w, "ImportLxdContainerProgress")
		if g.ProgressSpeed != speed {
			t.Errorf("%v", g)
		}
		return g
	}
	const before, size = 3 << 20, 8 << 20
	file, err := os.Create(filepath.Join(w.dir, "archive"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(before + size); err != nil {
		t.Fatal(err)
	}
	// What the caller has read already is no part of it.
	if _, err := file.Seek(before, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := s.ImportContainer(t.Context(), subject(), "termina", "penguin", file); err != nil {
		t.Fatal(err)
	}
	c := <-streams
	in := vsock.NewFrameReader(c)
	const upload = tpb.ContainerImportProgress_IMPORTING_UPLOAD
	if g := report(upload, 0, 7); g.ProgressPercent > 30 { // what fits between the two ends
		t.Errorf("%v", g)
	}
	if _, err := io.CopyN(io.Discard, in, size/2); err != nil {
		t.Fatal(err)
	}
	half := report(upload, 0, 8)
	if half.ProgressPercent < 45 || half.ProgressPercent > 80 {
		t.Errorf("%v", half)
	}
	if g := report(upload, 1, 9); g.ProgressPercent < half.ProgressPercent {
		t.Errorf("it goes back: %v", g)
	}
	if n, err := io.Copy(io.Discard, in); err != nil || n != size-size/2 {
		t.Errorf("%d bytes more, %v", n, err)
	}
	if g := report(upload, 0, 0); g.ProgressPercent != 100 {
		t.Errorf("%v", g)
	}
	if g := report(tpb.ContainerImportProgress_IMPORTING_UNPACK, 0, 0); g.ProgressPercent != 0 {
		t.Errorf("%v", g)
	}
	report(tpb.ContainerImportProgress_DONE, 100, 0)
	c.Close()

	// Nobody knows how much comes by a pipe.
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer p.Close()
	if err := s.ImportContainer(t.Context(), subject(), "termina", "penguin", r); err != nil {
		t.Fatal(err)
	}
	c = <-streams
	defer c.Close()
	if _, err := p.Write([]byte("container")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, vsock.NewFrameReader(c), 9); err != nil {
		t.Fatal(err)
	}
	if g := report(upload, 0, 0); g.ProgressPercent != 0 {
		t.Errorf("%v", g)
	}
	w.quiet()
}
