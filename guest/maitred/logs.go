package maitred

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// logDelay is how long a line may wait for others to go with.
	logDelay = 2 * time.Second
	// logAttempt bounds one call; a busy host lets calls queue.
	logAttempt = 10 * time.Second
	// Pauses between attempts grow from the first to the second.
	logPauseMin = 100 * time.Millisecond
	logPauseMax = 5 * time.Second
	// logGrace is how long the last lines may take when the VM ends.
	logGrace = 2 * time.Second
	// syslogPath is where programs send their messages.
	syslogPath = "/dev/log"
)

// A logShipper sends the kernel's log and the programs' to the host. It logs
// itself only when the host begins or ceases to take them: its own lines are
// in the kernel's log too.
type logShipper struct {
	log  *slog.Logger
	dial func(context.Context) (net.Conn, error)
	// line is the connection that dial has made last.
	line    atomic.Pointer[net.Conn]
	delay   time.Duration
	attempt time.Duration
	kernel  *logQueue
	user    *logQueue

	mu      sync.Mutex
	sources []*core.LogSource
	stopped bool
	reading sync.WaitGroup

	// ended is done when only what is there is still to be sent, and late
	// when nothing is any more.
	ended, late     context.Context
	endNow, lateNow context.CancelFunc
	sending         sync.WaitGroup
}

func newLogShipper(log *slog.Logger) *logShipper {
	s := &logShipper{log: log, delay: logDelay, attempt: logAttempt, kernel: newLogQueue(), user: newLogQueue(),
		dial: func(ctx context.Context) (net.Conn, error) { return vsock.DialHost(ctx, vsock.PortLogCollector) }}
	s.ended, s.endNow = context.WithCancel(context.Background())
	s.late, s.lateNow = context.WithCancel(context.Background())
	return s
}

// read fills a queue from a source until finish.
func (s *logShipper) read(source *core.LogSource, to *logQueue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		source.Close()
		return
	}
	s.sources = append(s.sources, source)
	s.reading.Go(func() {
		defer source.Close()
		defer s.survive()
		if err := source.Run(to.push, to.lose); err != nil {
			s.log.Error("a log is no longer sent to the host", "err", err)
		}
	})
}

// send begins to send what is queued.
func (s *logShipper) send() error {
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithWriteBufferSize(8<<10),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: logPauseMin, Multiplier: 2, MaxDelay: logPauseMax},
			MinConnectTimeout: logAttempt,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := s.dial(ctx)
			if err == nil {
				s.line.Store(&c)
			}
			return c, err
		}))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return conn.Close()
	}
	host := pb.NewLogCollectorClient(conn)
	var both sync.WaitGroup
	for _, stream := range []*logStream{
		{logShipper: s, name: "kernel", queue: s.kernel, call: host.CollectKernelLogs},
		{logShipper: s, name: "programs", queue: s.user, call: host.CollectUserLogs},
	} {
		both.Go(stream.run)
	}
	s.sending.Go(func() {
		both.Wait()
		conn.Close()
	})
	return nil
}

// finish sends what there still is, for as long as grace, and ends all.
func (s *logShipper) finish(grace time.Duration) {
	timer := time.AfterFunc(grace, s.lateNow)
	defer timer.Stop()
	defer s.lateNow()
	s.mu.Lock()
	s.stopped = true
	for _, source := range s.sources {
		source.Stop()
	}
	s.mu.Unlock()
	s.reading.Wait()
	s.endNow()
	s.sending.Wait()
}

// A logStream is the way of one log to the host; one goroutine goes it.
type logStream struct {
	*logShipper
	name    string
	queue   *logQueue
	call    func(context.Context, *pb.LogRequest, ...grpc.CallOption) (*pb.EmptyMessage, error)
	failing bool
}

// run sends a queue's lines, soon those that are urgent or many, the others
// together after a while.
func (s *logStream) run() {
	defer s.survive()
	for {
		select {
		case <-s.queue.some:
		case <-s.ended.Done():
		}
		wait := time.NewTimer(s.delay)
		select {
		case <-s.queue.now:
		case <-wait.C:
		case <-s.ended.Done():
		}
		wait.Stop()
		// Nothing is queued once this is so.
		last := s.ended.Err() != nil
		for batch := s.queue.take(); len(batch) > 0; batch = s.queue.take() {
			if !s.deliver(batch) {
				return
			}
		}
		if last {
			return
		}
	}
}

// deliver sends a batch until the host has taken or refused it. False says
// that there is no time left.
func (s *logStream) deliver(batch []core.LogLine) bool {
	for pause := logPauseMin; ; pause = min(2*pause, logPauseMax) {
		ctx, cancel := context.WithTimeout(s.late, s.attempt)
		_, err := s.call(ctx, logRequest(batch))
		cancel()
		if s.late.Err() != nil {
			return false
		}
		s.note(err)
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.Unimplemented:
			return true
		case codes.DeadlineExceeded:
			// The host's end may be gone without the guest's having been told,
			// as when the service is killed. Another connection will show.
			if c := s.line.Load(); c != nil {
				(*c).Close()
			}
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-s.late.Done():
			wait.Stop()
			return false
		}
	}
}

// note tells once that the host does not take a log, and once that it does.
func (s *logStream) note(err error) {
	switch {
	case err != nil && !s.failing:
		s.log.Info("the host does not take a log of this VM", "which", s.name, "err", err)
	case err == nil && s.failing:
		s.log.Info("the host takes a log of this VM again", "which", s.name)
	}
	s.failing = err != nil
}

// survive keeps a defect here from taking PID 1 along.
func (s *logShipper) survive() {
	if r := recover(); r != nil {
		s.log.Error("a log is no longer sent to the host", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	}
}

func logRequest(batch []core.LogLine) *pb.LogRequest {
	boot := core.BootTime()
	req := &pb.LogRequest{Records: make([]*pb.LogRecord, len(batch))}
	for i, l := range batch {
		at := l.Time
		if at.IsZero() {
			at = boot.Add(l.SinceBoot)
		}
		req.Records[i] = &pb.LogRecord{
			// The contract counts from 1.
			Severity:  pb.LogSeverity(l.Severity + 1),
			Timestamp: &pb.Timestamp{Seconds: at.Unix(), Nanos: int32(at.Nanosecond())},
			Content:   l.Text,
		}
	}
	return req
}
