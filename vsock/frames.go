package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxFrame bounds the bytes of one frame.
const MaxFrame = 32 << 10

// frameHead is the length before a frame's bytes, little-endian.
const frameHead = 4

// ErrFrame says that a peer does not speak in frames.
var ErrFrame = errors.New("malformed frame")

// A FrameWriter cuts what is written into frames: a length of four bytes and
// as many bytes. Close ends the data with an empty frame, so that the far end
// can tell data that ended from a stream that broke.
type FrameWriter struct {
	w      io.Writer
	buf    []byte
	err    error
	closed bool
}

// NewFrameWriter writes frames to w, which stays the caller's.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write sends p, in as many frames as it needs. Nothing to write is no frame.
func (f *FrameWriter) Write(p []byte) (int, error) {
	if f.closed {
		return 0, io.ErrClosedPipe
	}
	written := 0
	for len(p) > written && f.err == nil {
		// With its head, a frame still goes in one write of a guest.
		n := min(len(p)-written, MaxFrame-frameHead)
		if f.frame(p[written : written+n]); f.err == nil {
			written += n
		}
	}
	return written, f.err
}

// Close ends the data. Only then has the far end all of it.
func (f *FrameWriter) Close() error {
	if f.closed {
		return f.err
	}
	if f.err == nil {
		f.frame(nil)
	}
	f.closed = true
	return f.err
}

func (f *FrameWriter) frame(p []byte) {
	f.buf = binary.LittleEndian.AppendUint32(f.buf[:0], uint32(len(p)))
	f.buf = append(f.buf, p...)
	_, f.err = f.w.Write(f.buf)
}

// A FrameReader reads what a FrameWriter wrote. Its io.EOF is the empty frame;
// a stream that ends before it is io.ErrUnexpectedEOF.
type FrameReader struct {
	r    io.Reader
	left int // of the current frame
	err  error
}

// NewFrameReader reads frames from r and never beyond them.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Read implements io.Reader.
func (f *FrameReader) Read(p []byte) (int, error) {
	if f.err != nil || len(p) == 0 {
		return 0, f.err
	}
	if f.left == 0 {
		if f.left, f.err = readHead(f.r); f.err == nil && f.left == 0 {
			f.err = io.EOF
		}
		if f.err != nil {
			return 0, f.err
		}
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	if err != nil {
		f.err = unexpected(err)
	}
	return n, f.err
}

func readHead(r io.Reader) (int, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, unexpected(err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > MaxFrame {
		return 0, fmt.Errorf("%w: %d bytes announced, at most %d are allowed", ErrFrame, n, MaxFrame)
	}
	return int(n), nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadFrame reads one whole frame, such as a greeting, of at most limit bytes.
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	n, err := readHead(r)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%w: %d bytes where at most %d are expected", ErrFrame, n, limit)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, unexpected(err)
	}
	return p, nil
}

// WriteFrame writes p as one frame.
func WriteFrame(w io.Writer, p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("%w: %d bytes in one", ErrFrame, len(p))
	}
	f := FrameWriter{w: w}
	f.frame(p)
	return f.err
}
