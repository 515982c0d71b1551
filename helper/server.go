package helper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/helper/tap"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/seqpacket"
	"github.com/auberge-vm/auberge/vsock"
)

// Bounds of what a peer can have going on. Connections beyond wait in the
// kernel until there is room.
const (
	maxConns = 256
	// maxWorking is how much is done at once for one user or guest, whose files
	// or agents may never answer; maxWaiting is how much more may wait for that.
	maxWorking = 8
	maxWaiting = 32
	// packetTimeout is what a peer has for sending its request, and for
	// taking the answer.
	packetTimeout = 10 * time.Second
	// acceptPause is waited for when this process is short of something.
	acceptPause = 100 * time.Millisecond
)

// An Opener opens a file with a user's rights.
type Opener interface {
	Open(ctx context.Context, c policy.Caller, path string, mode policy.Mode) (*os.File, error)
}

// A Server does what its peer asks.
type Server struct {
	// PeerUID is the user whose processes may ask; root's may too.
	PeerUID uint32
	// MinUID is where users' uids begin. ReservedUIDs are nobody's above it.
	MinUID       uint32
	ReservedUIDs UIDRange

	Opener Opener
	// DialGuest connects to a guest from a reserved source port.
	DialGuest func(ctx context.Context, guest vsock.Addr) (*vsock.Conn, error)
	// ReserveCID opens the device by which a guest gets a CID.
	ReserveCID func(cid uint32) (*os.File, error)
	// Networks makes the networks of VMs; nil where VMs get none of that kind.
	Networks *tap.Networks
	Log      *slog.Logger
	// Idle is how long the server waits for a connection before it ends,
	// zero for ever.
	Idle time.Duration

	grace time.Duration // packetTimeout, but in tests

	mu     sync.Mutex
	shares map[string]*share
}

// A share is what goes on for one user or guest.
type share struct {
	working chan struct{}
	users   int
}

// Serve answers on a listening socket until ctx is done or nobody came for
// long enough.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	room := make(chan struct{}, maxConns)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.accept(ctx, l)
		switch {
		case ctx.Err() != nil:
			if c != nil {
				c.Close()
			}
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			<-room
			if len(room) == 0 && !s.Networks.InUse() {
				return nil
			}
		case err != nil:
			<-room
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			s.Log.Error("accept", "err", err)
			pause(ctx)
		default:
			conns.Go(func() {
				defer func() { <-room }()
				defer c.Close()
				s.serve(ctx, c)
			})
		}
	}
}

func (s *Server) accept(ctx context.Context, l *net.UnixListener) (*net.UnixConn, error) {
	if s.Idle > 0 {
		l.SetDeadline(time.Now().Add(s.Idle))
		if ctx.Err() != nil { // whose deadline this one has replaced
			return nil, ctx.Err()
		}
	}
	return l.AcceptUnix()
}

func pause(ctx context.Context) {
	t := time.NewTimer(acceptPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve answers the one request of a connection.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	cred, err := seqpacket.Peer(c)
	if err != nil || (cred.Uid != s.PeerUID && cred.Uid != 0) {
		s.audit(ctx, slog.LevelWarn, "refused a connection", "peer", cred, "err", err)
		return
	}
	c.SetDeadline(time.Now().Add(cmp.Or(s.grace, packetTimeout)))
	if ctx.Err() != nil {
		return
	}
	p, err := requests.Receive(c)
	if errors.Is(err, io.EOF) {
		return // it wanted to know whether we are there
	}
	var f *os.File
	if err == nil {
		c.SetReadDeadline(time.Time{})
		f, err = s.do(ctx, c, p.Data)
	} else {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
		s.audit(ctx, slog.LevelWarn, "refused a request", "pid", cred.Pid, "err", err)
	}
	if ctx.Err() != nil { // what failed for that reason is nobody's fault
		if f != nil {
			f.Close()
		}
		return
	}
	c.SetWriteDeadline(time.Now().Add(cmp.Or(s.grace, packetTimeout)))
	if err := s.answer(c, f, err); err != nil {
		s.Log.Warn("answer a request", "pid", cred.Pid, "err", err)
	}
}

func (s *Server) answer(c *net.UnixConn, f *os.File, err error) error {
	var r reply
	var files []*os.File
	if err != nil {
		r = failure(err)
	} else if f != nil {
		defer f.Close()
		files = []*os.File{f}
	}
	b, err := encodeReply(r)
	if err != nil {
		return err
	}
	return replies.Send(c, b, files)
}

// do does what a request says and writes it down.
func (s *Server) do(ctx context.Context, c *net.UnixConn, packet []byte) (f *os.File, err error) {
	name, v, t, err := parseRequest(packet)
	if err != nil {
		s.audit(ctx, slog.LevelWarn, "refused a request", "verb", name, "err", err)
		return nil, err
	}
	defer func() {
		asked := append([]any{"verb", name}, t.audit()...)
		if err != nil {
			s.audit(ctx, slog.LevelWarn, "not done", append(asked, "err", err)...)
		} else {
			s.audit(ctx, slog.LevelInfo, "done", asked...)
		}
	}()
	if err := t.check(s); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, v.timeout, fmt.Errorf("it took longer than %v", v.timeout))
	defer cancel()
	ctx, hungUp := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		// A peer has nothing to say now: whatever comes, it has gone.
		c.Read(make([]byte, 1))
		hungUp(errors.New("whoever asked has hung up"))
	}()
	defer func() {
		c.SetReadDeadline(time.Unix(1, 0))
		<-watching
	}()
	leave, err := s.enter(ctx, t.whose())
	if err != nil {
		return nil, err
	}
	defer leave()
	return t.run(ctx, s)
}

// audit writes one line, whatever level of importance the log is restricted to.
func (s *Server) audit(ctx context.Context, level slog.Level, what string, args ...any) {
	r := slog.NewRecord(time.Now(), level, what, 0)
	r.Add("audit", true)
	r.Add(args...)
	if err := s.Log.Handler().Handle(ctx, r); err != nil {
		s.Log.Error("can't write a line of the audit", "err", err)
	}
}

// enter waits for a place among those who share a bound.
func (s *Server) enter(ctx context.Context, whose string) (leave func(), err error) {
	s.mu.Lock()
	if s.shares == nil {
		s.shares = map[string]*share{}
	}
	sh := s.shares[whose]
	if sh == nil {
		sh = &share{working: make(chan struct{}, maxWorking)}
		s.shares[whose] = sh
	}
	if sh.users >= maxWorking+maxWaiting {
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", whose, ErrBusy)
	}
	sh.users++
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sh.users--; sh.users == 0 {
			delete(s.shares, whose)
		}
	}
	select {
	case sh.working <- struct{}{}:
		return func() { <-sh.working; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, fmt.Errorf("wait for what else goes on for %s: %w", whose, context.Cause(ctx))
	}
}
