package maitred

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// A collector is a host that takes logs, once it listens.
type collector struct {
	pb.UnimplementedLogCollectorServer
	kernel, user chan *pb.LogRequest
	refused      chan error
	mu           sync.Mutex
	fault        error // of user logs
}

func (c *collector) CollectKernelLogs(_ context.Context, r *pb.LogRequest) (*pb.EmptyMessage, error) {
	c.kernel <- r
	return &pb.EmptyMessage{}, nil
}

func (c *collector) CollectUserLogs(_ context.Context, r *pb.LogRequest) (*pb.EmptyMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		c.refused <- c.fault
		return nil, c.fault
	}
	c.user <- r
	return &pb.EmptyMessage{}, nil
}

func (c *collector) failWith(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = err
}

// shipTo returns a shipper whose host is c, and which waits for nothing but
// urgent lines; listening begins with the call of listen.
func shipTo(t *testing.T, c *collector, log *slog.Logger) (s *logShipper, listen func()) {
	t.Helper()
	c.kernel, c.user = make(chan *pb.LogRequest, 10000), make(chan *pb.LogRequest, 10000)
	c.refused = make(chan error, 10000)
	var mu sync.Mutex
	var listener *bufconn.Listener
	s = newLogShipper(log)
	s.delay = time.Hour
	s.dial = func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		l := listener
		mu.Unlock()
		if l == nil {
			return nil, errors.New("nobody listens")
		}
		return l.DialContext(ctx)
	}
	t.Cleanup(func() { s.finish(0) })
	return s, func() {
		l := bufconn.Listen(64 << 10)
		face := grpc.NewServer()
		pb.RegisterLogCollectorServer(face, c)
		done := make(chan error, 1)
		go func() { done <- face.Serve(l) }()
		t.Cleanup(func() { face.Stop(); <-done })
		mu.Lock()
		listener = l
		mu.Unlock()
	}
}

func texts(r *pb.LogRequest) string {
	var all []string
	for _, rec := range r.Records {
		all = append(all, fmt.Sprintf("%d %s", rec.Severity, rec.Content))
	}
	return strings.Join(all, "|")
}

func line(severity int, text string) core.LogLine {
	return core.LogLine{Severity: severity, Time: time.Unix(1700000000, 5), Text: []byte(text)}
}

func TestLogsWaitForTheHost(t *testing.T) {
	var said strings.Builder
	c := &collector{}
	s, listen := shipTo(t, c, slog.New(slog.NewTextHandler(&said, nil)))
	source, err := core.ListenSyslog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	s.read(source, s.user)
	s.user.push(line(6, "one"))
	s.user.push(line(3, "an error"))
	s.kernel.push(core.LogLine{Severity: 0, SinceBoot: time.Second, Text: []byte("\xff")})
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	listen()
	user, kernel := <-c.user, <-c.kernel
	if got := texts(user); got != "7 one|4 an error" {
		t.Errorf("the programs' log: %q", got)
	}
	if ts := user.Records[0].Timestamp; ts.Seconds != 1700000000 || ts.Nanos != 5 {
		t.Errorf("at %v", ts)
	}
	if got := texts(kernel); got != "1 \xff" {
		t.Errorf("the kernel's log: %q", got)
	}
	want := core.BootTime().Add(time.Second).Unix()
	if got := kernel.Records[0].Timestamp.Seconds; got < want-60 || got > want+60 {
		t.Errorf("a second after boot is %d, want about %d", got, want)
	}
	s.finish(time.Minute)
	// However often it failed, it tells at most once that it does.
	if n := strings.Count(said.String(), "does not take"); n > 2 {
		t.Errorf("it said:\n%s", &said)
	}
}

// Lines that are not urgent go together, when there are enough of them.
func TestLogsGoInBatches(t *testing.T) {
	c := &collector{}
	s, listen := shipTo(t, c, quiet())
	listen()
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	const lines = 1000
	for i := range lines {
		s.user.push(line(6, fmt.Sprintf("line %d", i)))
	}
	s.finish(time.Minute)
	close(c.user)
	n := 0
	for r := range c.user {
		size := 0
		for _, rec := range r.Records {
			if got, want := string(rec.Content), fmt.Sprintf("line %d", n); got != want {
				t.Fatalf("%q instead of %q", got, want)
			}
			size += len(rec.Content)
			n++
		}
		if size > batchSize+1024 {
			t.Errorf("a batch of %d bytes", size)
		}
	}
	if n != lines {
		t.Errorf("%d lines came, want %d", n, lines)
	}
}

// A flood while the host is deaf takes bounded memory; the newest lines are
// kept, and how many are gone is told where they were.
func TestLogsThatDoNotFit(t *testing.T) {
	q := newLogQueue()
	const lines, width = 5000, 200
	for i := range lines {
		q.push(line(6, fmt.Sprintf("%0*d", width, i)))
		if q.size > queueLimit || len(q.lines) > queueLimit/lineCost {
			t.Fatalf("it holds %d lines with %d bytes", len(q.lines), q.size)
		}
	}
	q.lose(10)
	kept := len(q.lines)
	first := q.take()
	if want := fmt.Sprintf("maitred: %d older lines of this log were lost", lines-kept+10); string(first[0].Text) != want || first[0].Severity != severityWarning {
		t.Errorf("the first line is %+v, want %q", first[0], want)
	}
	if want := fmt.Sprintf("%0*d", width, lines-kept); string(first[1].Text) != want {
		t.Errorf("the oldest line kept is %s", first[1].Text)
	}
	total := len(first) - 1
	for b := q.take(); len(b) > 0; b = q.take() {
		total += len(b)
	}
	if total != kept || q.size != 0 {
		t.Errorf("%d lines of %d, and %d bytes are left", total, kept, q.size)
	}
}

// What the host refuses for good is given up; what it cannot take now is kept.
func TestLogsRefused(t *testing.T) {
	c := &collector{fault: status.Error(codes.InvalidArgument, "bad")}
	s, listen := shipTo(t, c, quiet())
	listen()
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	s.user.push(line(3, "refused"))
	<-c.refused
	c.failWith(status.Error(codes.ResourceExhausted, "later"))
	s.user.push(line(3, "kept"))
	<-c.refused
	c.failWith(nil)
	if got := texts(<-c.user); got != "4 kept" {
		t.Errorf("the host got %q", got)
	}
}

// The end of the VM is not held up by a host that takes nothing.
func TestLogsAtTheEnd(t *testing.T) {
	c := &collector{}
	s, _ := shipTo(t, c, quiet())
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	s.user.push(line(3, "never heard"))
	s.finish(10 * time.Millisecond)
	if err := s.send(); err != nil {
		t.Error(err)
	}
}

// mute is a host's end of which the guest was not told that it is gone.
type mute struct {
	pb.UnimplementedLogCollectorServer
}

func (mute) CollectUserLogs(ctx context.Context, _ *pb.LogRequest) (*pb.EmptyMessage, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestLogsLeaveAConnectionThatIsDead(t *testing.T) {
	c := &collector{}
	s, listen := shipTo(t, c, slog.New(slog.DiscardHandler))
	s.attempt = 100 * time.Millisecond
	listen()
	dead := bufconn.Listen(64 << 10)
	face := grpc.NewServer()
	pb.RegisterLogCollectorServer(face, mute{})
	done := make(chan error, 1)
	go func() { done <- face.Serve(dead) }()
	t.Cleanup(func() { face.Stop(); <-done })
	dial, dials := s.dial, 0
	s.dial = func(ctx context.Context) (net.Conn, error) {
		if dials++; dials == 1 {
			return dead.DialContext(ctx)
		}
		return dial(ctx)
	}
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	s.user.push(line(3, "a"))
	select {
	case r := <-c.user:
		if got := texts(r); got != "4 a" {
			t.Errorf("%q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing comes")
	}
}
