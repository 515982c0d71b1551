package concierge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/concierge/vmlog"
)

// How many logs can be open at a time. Each costs a goroutine and some
// descriptors until its reader goes away.
const (
	maxLogPipes     = 256
	maxUserLogPipes = 16
)

// logPipes counts the open logs of each user.
type logPipes struct {
	mu  sync.Mutex
	all int
	of  map[uint32]int
}

func newLogPipes() *logPipes { return &logPipes{of: map[uint32]int{}} }

func (p *logPipes) take(uid uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.of[uid] >= maxUserLogPipes:
		return fmt.Errorf("you have %d logs open, more than that a user may not have; close one", maxUserLogPipes)
	case p.all >= maxLogPipes:
		return fmt.Errorf("%d logs are open, more than that the service does not serve; try again later", maxLogPipes)
	}
	p.all++
	p.of[uid]++
	return nil
}

func (p *logPipes) give(uid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[uid]--; p.of[uid] == 0 {
		delete(p.of, uid)
	}
}

// startPipe writes a log into a pipe, in a goroutine of its own, and returns
// the reading end. On success the reader is closed, and done called, when that
// has ended.
func (s *Service) startPipe(r *vmlog.Reader, follow bool, done func()) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	read := os.NewFile(uintptr(p[0]), "log")
	// Only our end: who reads expects an ordinary, blocking descriptor.
	if err := unix.SetNonblock(p[1], true); err != nil {
		read.Close()
		unix.Close(p[1])
		return nil, err
	}
	write := os.NewFile(uintptr(p[1]), "log")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		read.Close()
		write.Close()
		return nil, errors.New("the service is shutting down")
	}
	s.running.Go(func() {
		defer done()
		defer r.Close()
		s.fillPipe(r, write, follow)
	})
	return read, nil
}

// fillPipe ends when everything is written, the pipe's reader has gone, or the
// service ends.
func (s *Service) fillPipe(r *vmlog.Reader, w *os.File, follow bool) {
	ctx, cancel := context.WithCancel(s.quit)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		defer cancel()
		awaitHangup(w)
	})
	// Also wakes the goroutine above.
	context.AfterFunc(ctx, func() { w.SetDeadline(time.Unix(1, 0)) })
	err := r.Copy(ctx, w, follow)
	if err != nil && ctx.Err() == nil && !errors.Is(err, unix.EPIPE) {
		s.log.Error("write a VM's log into a pipe", "err", err)
	}
	cancel()
	waiting.Wait()
	w.Close()
}

// awaitHangup returns when the other end of a pipe is closed, or the deadline
// has passed. Somebody who follows a silent log would otherwise be noticed
// only at the next line.
func awaitHangup(w *os.File) {
	raw, err := w.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
	})
}
