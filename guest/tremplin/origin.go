package tremplin

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/vsock"
)

// transferBuffer is as much as the kernel keeps of a stream.
const transferBuffer = 256 << 10

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
		// Whatever the kernel has, at once.
		return &origin{Reader: vsock.NewFrameReader(bufio.NewReaderSize(conn, transferBuffer)), close: func() { conn.Close() }}, nil
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

// speed is how many bytes came in a second since the last notice; there is none
// before the first.
func speed(last, now time.Time, n uint64) uint64 {
	if last.IsZero() || !now.After(last) {
		return 0
	}
	return uint64(float64(n) / now.Sub(last).Seconds())
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
