package cicerone

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/auberge-vm/auberge/vsock"
)

// fileError is one of the caller's file.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

// copy copies until the end of the data, and says at which end it failed.
func (s *stream) copy(kind opKind, c io.ReadWriter, f *os.File) error {
	buf := make([]byte, vsock.MaxFrame)
	if kind == opExport {
		_, err := io.CopyBuffer(writing{s, atFile, ownWriter{f}}, reading{s, atGuest, vsock.NewFrameReader(c)}, buf)
		if err == nil {
			s.at.Store(atDisk)
			err = syncFile(f)
		}
		return explainStream(err, "write the container to the file")
	}
	w := vsock.NewFrameWriter(c)
	if _, err := io.CopyBuffer(writing{s, atGuest, w}, reading{s, atFile, ownReader{f}}, buf); err != nil {
		return explainStream(err, "read the container from the file") // without the end, the guest knows
	}
	return explainStream(w.Close(), "")
}

// syncFile brings a regular file to the disk: what was exported is often all
// that is left.
func syncFile(f *os.File) error {
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	if err := syncDisk(f); err != nil {
		return fileError{err}
	}
	return nil
}

// writing notes how a stream goes at the end to which it writes, reading at the
// other.
type writing struct {
	s  *stream
	at int32
	w  io.Writer
}

func (w writing) Write(p []byte) (int, error) {
	w.s.at.Store(w.at)
	n, err := w.w.Write(p)
	w.s.moved.Add(int64(n))
	w.s.sent.Add(int64(n))
	return n, err
}

type reading struct {
	s  *stream
	at int32
	r  io.Reader
}

func (r reading) Read(p []byte) (int, error) {
	r.s.at.Store(r.at)
	n, err := r.r.Read(p)
	r.s.moved.Add(int64(n))
	return n, err
}

// upTo is how many percent of a file the VM has, which never are fewer than
// before. What the VM says counts, if it says anything.
func (s *stream) upTo(said uint32) uint32 {
	if said == 0 && s.size > 0 {
		said = uint32(min(float64(s.sent.Load())/float64(s.size), 1) * 100)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.percent = max(s.percent, said)
	return s.percent
}

func explainStream(err error, what string) error {
	var own fileError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return fmt.Errorf("%s: %w", what, own)
	}
	return fmt.Errorf("the stream with the VM broke: %w", err)
}

type ownWriter struct{ f *os.File }

func (w ownWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = fileError{err}
	}
	return n, err
}

type ownReader struct{ f *os.File }

func (r ownReader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	if err != nil && err != io.EOF {
		err = fileError{err}
	}
	return n, err
}
