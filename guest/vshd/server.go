package vshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// acceptPause is how long Serve leaves new streams queued when the system is
// out of descriptors or memory.
const acceptPause = 100 * time.Millisecond

// longAgo, as a deadline, ends what waits on a stream.
var longAgo = time.Unix(1, 0)

type options struct {
	log          *slog.Logger
	place        string   // what the guest is, in messages
	container    bool     // or else a VM
	inherited    []string // environment of every session
	etc          string
	maxSessions  int
	setupTimeout time.Duration // for the client's first message
	lingerTime   time.Duration // for the client to close after the last one
	killGrace    time.Duration // between SIGHUP and SIGKILL
	inputLimit   int           // bytes of input at rest
	drain        drainLimits
}

// An Option changes a default of New.
type Option func(*options)

// WithLogger sets where the server logs; the default is slog's.
func WithLogger(log *slog.Logger) Option {
	return func(o *options) { o.log = log }
}

// WithMaxSessions bounds the sessions at a time; the default is 1024. Clients
// beyond it are told so.
func WithMaxSessions(n int) Option {
	return func(o *options) { o.maxSessions = n }
}

// InContainer makes a server for the container that it runs in: requests name
// a container, and a session without a user is the server's own user's.
func InContainer() Option {
	return func(o *options) { o.container, o.place = true, "this container" }
}

// WithEnv gives sessions an environment that the client's goes on top of.
func WithEnv(env []string) Option {
	return func(o *options) { o.inherited = env }
}

// A Server runs sessions.
type Server struct{ options }

// New returns a server. It runs sessions as any user when it is root, else as
// its own.
func New(args ...Option) *Server {
	s := &Server{options{
		log:          slog.Default(),
		place:        "this VM",
		etc:          "/etc",
		maxSessions:  1024,
		setupTimeout: 10 * time.Second,
		lingerTime:   5 * time.Second,
		killGrace:    3 * time.Second,
		inputLimit:   2 << 20,
		drain:        drainLimits{silence: 200 * time.Millisecond, total: time.Second, bytes: 1 << 20},
	}}
	for _, arg := range args {
		arg(&s.options)
	}
	return s
}

// Serve runs a session on every stream from l until ctx is done; then it hangs
// up on all of them, waits for their processes to be gone, and returns nil. It
// closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	slots := make(chan struct{}, s.maxSessions)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case outOfResources(err):
			s.log.Warn("cannot accept sessions for now", "err", err)
			pause(ctx, acceptPause)
			continue
		default:
			return fmt.Errorf("accept session: %w", err)
		}
		select {
		case slots <- struct{}{}:
			sessions.Go(func() {
				defer func() { <-slots }()
				defer conn.Close()
				s.serve(ctx, conn)
			})
		default:
			s.log.Warn("session refused", "err", "too many sessions", "limit", s.maxSessions)
			refuse(conn, vshpb.NewWriter(conn), fmt.Sprintf("%s runs %d sessions already, the most it allows", s.place, s.maxSessions))
			conn.Close()
		}
	}
}

// ServeConn runs one session on a stream, until the session has ended or ctx
// is done; then its processes are gone. It closes the stream.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	s.serve(ctx, conn)
}

func outOfResources(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve takes one stream from its first message to its last.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	stream := newTap(conn)
	frames, out := vshpb.NewReader(stream), vshpb.NewWriter(stream)
	req, err := s.setup(ctx, conn, frames)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, io.EOF) {
			s.log.Warn("session refused", "err", err)
			refuse(conn, out, err.Error())
		}
		return
	}
	p, err := s.launch(req)
	if err != nil {
		s.log.Warn("session refused", "user", req.GetUser(), "err", err)
		var cannot *execError
		if errors.As(err, &cannot) {
			reportNotRun(out, cannot)
		} else {
			refuse(conn, out, err.Error())
		}
		s.linger(ctx, conn, frames)
		return
	}
	log := s.log.With("user", p.user, "pid", p.pid, "pty", p.master != nil)
	log.Info("session started")
	sn := &session{server: s, conn: conn, frames: frames, out: out, proc: p, input: newInput(s.inputLimit)}
	if p.master == nil { // the end of a terminal's input depends on what came last
		sn.input.direct = p.writeNow
	}
	code, err := sn.run(ctx)
	if err != nil {
		log.Info("session hung up", "err", err)
		return
	}
	log.Info("session ended", "code", code)
}

// setup waits for the client's first message.
func (s *Server) setup(ctx context.Context, conn net.Conn, frames *vshpb.Reader) (*vshpb.SetupConnectionRequest, error) {
	conn.SetReadDeadline(time.Now().Add(s.setupTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(longAgo) })
	defer stop()
	req := new(vshpb.SetupConnectionRequest)
	if err := frames.Read(req); err != nil {
		return nil, fmt.Errorf("read the setup request: %w", err)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	conn.SetReadDeadline(time.Time{})
	return req, nil
}

// refuse answers a setup request that starts nothing.
func refuse(conn net.Conn, out *vshpb.Writer, why string) {
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	out.Write(&vshpb.SetupConnectionResponse{
		Status:      vshpb.ConnectionStatus_FAILED,
		Description: clip(why),
	})
}

// reportNotRun gives a command that cannot be run the session that a shell
// would have given it: a line on stderr and the code 126 or 127. There is no
// process, so there is no pid.
func reportNotRun(out *vshpb.Writer, e *execError) {
	out.Write(&vshpb.SetupConnectionResponse{Status: vshpb.ConnectionStatus_READY})
	out.WriteData(vshpb.StdioStream_STDERR_STREAM, []byte(clip("vshd: "+e.Error())+"\n"))
	out.Write(exitedWith(e.code))
}

// exitedWith is the last message of a session.
func exitedWith(code int) *vshpb.HostMessage {
	return status(&vshpb.ConnectionStatusMessage{Status: vshpb.ConnectionStatus_EXITED, Code: int32(code)})
}

func status(m *vshpb.ConnectionStatusMessage) *vshpb.HostMessage {
	return &vshpb.HostMessage{Msg: &vshpb.HostMessage_StatusMessage{StatusMessage: m}}
}

// linger waits for the client to close: closing first, with something of the
// client's unread, can cost it the last messages.
func (s *Server) linger(ctx context.Context, conn net.Conn, frames *vshpb.Reader) {
	conn.SetReadDeadline(time.Now().Add(s.lingerTime))
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(longAgo) })()
	for {
		if _, err := frames.Next(); err != nil {
			return
		}
	}
}

// clip keeps a text for people within a message.
func clip(text string) string {
	const most = 2048
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}
