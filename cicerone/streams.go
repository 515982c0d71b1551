package cicerone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/vsock"
)

// streamScheme is how tremplin is told to use a stream for a file.
const streamScheme = "transfer:"

// Tests have less time.
var (
	// streamEnd is how long nothing may come of a stream's data when tremplin
	// says that it is done.
	streamEnd = time.Minute
	// streamWhy is how long tremplin has to say why a stream broke.
	streamWhy = 2 * connectTimeout
	// streamCancel is how long it may take to tidy up what was cancelled: it
	// gives Incus two minutes.
	streamCancel = 5 * time.Minute
	// syncDisk brings a file to its disk.
	syncDisk = (*os.File).Sync
)

// A stream copies between a caller's file and tremplin.
type stream struct {
	cancel context.CancelFunc
	copied chan struct{} // closed when err is set

	at    atomic.Int32 // the place that is waited for
	moved atomic.Int64 // bytes that came from one end or went to the other
	sent  atomic.Int64 // those that went
	size  int64        // of what is sent; 0 where nobody knows it

	mu        sync.Mutex
	err       error
	finishing bool   // tremplin has said that it is done
	cancels   int    // that it was asked for, and has not answered
	unwanted  bool   // one of them may be what ends this
	percent   uint32 // that was told
}

// What a stream may wait for.
const (
	atGuest int32 = iota
	atFile
	atDisk // which takes what the file has
)

func (s *stream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// maxStreams is how many files of one user's are used at a time. A regular one
// may be on a file system of the user's own, and take for ever.
const maxStreams = 16

func (s *Service) takeStream(uid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[uid] >= maxStreams {
		return fmt.Errorf("%d exports and imports of user %d are in progress, the most that may", maxStreams, uid)
	}
	s.streams[uid]++
	return nil
}

func (s *Service) giveStream(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[uid]--; s.streams[uid] == 0 {
		delete(s.streams, uid)
	}
}

// A callersFile is the caller's file while it is used here. A pipe or socket
// does not block meanwhile, so that waiting for it can be given up.
type callersFile struct {
	*os.File
	// blocking: it did before, which is to be so again, as the caller shares
	// this.
	blocking bool
	// used: it is closed by the goroutine that copies.
	used   bool
	closed func()
}

// rest is how much there is to read in a regular file from where the caller is
// in it; of a pipe or socket nobody knows.
func (f *callersFile) rest() int64 {
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return 0
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0
	}
	return max(fi.Size()-at, 0)
}

func (f *callersFile) Close() error {
	if f.blocking {
		if raw, err := f.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { syscall.SetNonblock(int(fd), false) })
		}
	}
	err := f.File.Close()
	if f.closed != nil {
		f.closed()
	}
	return err
}

// ownFile returns a descriptor of the caller's file that outlives the call.
func ownFile(f *os.File) (own *os.File, blocking bool, err error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, false, fmt.Errorf("keep the file: %w", err)
	}
	var st unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
		case unix.S_IFIFO, unix.S_IFSOCK:
			blocking = flags&unix.O_NONBLOCK == 0
			err = unix.SetNonblock(fd, true)
		default:
			err = fmt.Errorf("%w: it must be a regular file, a pipe or a socket", ErrInvalid)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, false, fmt.Errorf("use the file: %w", err)
	}
	return os.NewFile(uintptr(fd), "the caller's file"), blocking, nil
}

// openStream makes a stream to tremplin and returns what begins to copy; that
// must be called, with nil to give up.
func (v *vm) openStream(ctx context.Context, id string, kind opKind, f *callersFile) (func(*operation) *stream, error) {
	dial, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	c, err := v.s.cfg.Concierge.Dial(dial, v.info.CID, vsock.PortTransfer)
	if err != nil {
		return nil, fmt.Errorf("open a stream to the VM: %w", err)
	}
	stop := context.AfterFunc(dial, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = vsock.WriteFrame(c, []byte(id))
	var answer []byte
	if err == nil {
		answer, err = vsock.ReadFrame(c, 64)
	}
	if err == nil && string(answer) != "ready" {
		err = fmt.Errorf("the guest answers %q", wire.Text(string(answer), 64))
	}
	if !stop() && err == nil {
		err = dial.Err()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open a stream to the VM: %w", err)
	}
	size := f.rest()
	return func(o *operation) *stream {
		if o == nil {
			c.Close()
			return nil
		}
		ctx, cancel := context.WithCancel(v.ctx)
		st := &stream{cancel: cancel, copied: make(chan struct{}), size: size}
		run := func() {
			defer cancel()
			defer f.Close()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() {
				c.SetDeadline(time.Unix(1, 0))
				f.SetDeadline(time.Unix(1, 0)) // no error matters: a regular file takes no time
			})
			defer stop()
			err := st.copy(kind, c, f.File)
			if ctx.Err() != nil {
				err = errors.New("given up")
			}
			st.mu.Lock()
			st.err = err
			st.mu.Unlock()
			close(st.copied)
			if err != nil && ctx.Err() == nil {
				v.streamFailed(o, st, err)
			}
		}
		if f.used = v.s.beginLocked(run); !f.used {
			c.Close()
			cancel()
			st.err = errClosed
			close(st.copied)
		}
		return st
	}, nil
}
