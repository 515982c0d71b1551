package tremplin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/guest/guard"
	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"github.com/auberge-vm/auberge/guest/tremplin/rootfs"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"google.golang.org/grpc"
)

const (
	// startWait bounds the start of Incus, which an emulated VM takes its time
	// for, and the first one makes the storage pool.
	startWait = 4 * time.Minute
	// cleanWait bounds the removal of what a failed operation has left.
	cleanWait = 2 * time.Minute
	// settleWait is how long Incus may not know whether a container runs.
	settleWait = 30 * time.Second
	// agreeWait is how long Incus' answers and events may contradict each other.
	agreeWait = 15 * time.Second
	// tidyGrace is how long operations may take to tidy up before the VM goes.
	tidyGrace = 500 * time.Millisecond
	// maxStreams bounds the calls that one connection of the host may have
	// open.
	maxStreams = 64
)

// A Server answers the host. What a newer contract may add is answered with
// Unimplemented by the embedded server.
type Server struct {
	pb.UnimplementedTremplinServer

	cfg    Config
	log    *slog.Logger
	incus  *incus.Client
	daemon *daemon
	host   *outbox
	jobs   *jobs
	lxd    lxd
	images imageStore
	moves  *transfers
	states *states
	left   *leftovers
	// agreeWait is the constant of this name, unless a test has no time.
	agreeWait time.Duration

	ctx     context.Context // of what runs beside the calls
	end     context.CancelFunc
	running sync.WaitGroup
}

// NewServer returns a server that reaches the host's TremplinListener by dial.
func NewServer(cfg Config, log *slog.Logger, dial func(context.Context) (net.Conn, error)) (*Server, error) {
	host, err := newOutbox(log, dial)
	if err != nil {
		return nil, err
	}
	client := incus.New(cfg.socket())
	ctx, end := context.WithCancel(context.Background())
	s := &Server{
		cfg: cfg, log: log, incus: client,
		daemon:    &daemon{cfg: cfg, log: log, client: client},
		agreeWait: agreeWait,
		host:      host, jobs: newJobs(), images: newImageStore(), moves: newTransfers(log), ctx: ctx, end: end,
	}
	s.states, s.left, s.lxd.start = newStates(s), newLeftovers(s), s.startIncus
	return s, nil
}

// Run serves the host on one listener and its transfers on another until the
// context ends, and leaves Incus and the containers running.
func (s *Server) Run(ctx context.Context, face, transfers net.Listener) error {
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(guard.Calls(s.log, "the containers' agent has a defect, see the VM's log")),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaders), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10), grpc.SharedWriteBuffer(true),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterTremplinServer(srv, s)
	outbox, endOutbox := context.WithCancel(context.Background())
	var delivering sync.WaitGroup
	delivering.Go(func() { s.host.run(outbox) })
	s.host.announce()
	failed := make(chan error, 2)
	s.running.Go(func() { failed <- srv.Serve(face) })
	s.running.Go(func() { failed <- s.moves.serve(s.ctx, transfers) })
	s.running.Go(func() { s.states.watch(s.ctx) })
	s.running.Go(func() { s.left.run(s.ctx) })
	s.running.Go(s.resume)
	s.running.Go(func() { s.watchPorts(s.ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.jobs.stop()
	s.end()
	transfers.Close()
	late := time.AfterFunc(time.Second, srv.Stop)
	srv.GracefulStop()
	late.Stop()
	s.jobs.wait()
	s.running.Wait()
	s.daemon.release()
	// The last words of the jobs.
	flush, done := context.WithTimeout(context.Background(), time.Second)
	s.host.flush(flush)
	done()
	endOutbox()
	delivering.Wait()
	s.incus.Close()
	return err
}

// resume takes over an Incus that an earlier tremplin has left behind, for its
// containers may stop at any time.
func (s *Server) resume() {
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	if _, err := s.incus.Server(ctx); err == nil || s.daemon.leftBehind() > 0 {
		s.beginLxd(false)
	}
}

// PowerOff stops all containers in order, and then Incus. Nothing begins any
// more.
func (s *Server) PowerOff(grace time.Duration) {
	s.jobs.stop()
	tidied := make(chan struct{})
	go func() {
		s.jobs.wait()
		close(tidied)
	}()
	late := time.NewTimer(tidyGrace)
	defer late.Stop()
	select {
	case <-tidied:
	case <-late.C:
		// What stays is removed at the next start.
	}
	s.daemon.close()
	s.daemon.stop(powerOffSignal, grace)
}

// A container's name is one of Incus' that cannot be one of ours.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// ownPrefix begins the names of what is not finished. It is no container's.
const ownPrefix = "auberge-"

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("no container is named")
	case !nameForm.MatchString(name) || strings.HasSuffix(name, "-"):
		return fmt.Errorf("%.80q cannot be a container's name: want a small letter, then small letters, digits and -, 63 in all", name)
	case strings.HasPrefix(name, ownPrefix):
		return fmt.Errorf("%q cannot be a container's name: %s begins the names of what is not finished", name, ownPrefix)
	}
	return nil
}

// tempName is the name of a container until it is finished.
func tempName(purpose string) string {
	return ownPrefix + purpose + "-" + fmt.Sprintf("%x", time.Now().UnixNano())
}

// find returns a container. Its error is for people; there tells whether it is
// only that there is no such container.
func (s *Server) find(ctx context.Context, name string) (i incus.Instance, missing bool, err error) {
	if err := checkName(name); err != nil {
		return i, false, err
	}
	if err := s.ensureLxd(ctx); err != nil {
		return i, false, err
	}
	i, err = s.settled(ctx, name)
	if incus.IsNotFound(err) {
		return i, true, fmt.Errorf("there is no container %s", name)
	}
	return i, false, err
}

// settled returns a container of which it is known whether it runs. Incus may not
// know for a while, when the VM has more to do than it can; and while it writes
// down that a container has stopped, of which it has told already, it calls that
// one running again.
func (s *Server) settled(ctx context.Context, name string) (incus.Instance, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleWait, fmt.Errorf("Incus cannot tell whether the container %s runs: its monitor does not answer", name))
	defer cancel()
	again := time.NewTicker(busyPause)
	defer again.Stop()
	for begun := time.Now(); ; {
		i, err := s.incus.Instance(ctx, name)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		switch late := time.Since(begun) > s.agreeWait; {
		case err != nil:
			return i, err
		case i.Status == incus.Unknown:
		case s.states.agrees(i):
			return i, nil
		case late:
			s.states.believe(i)
			return i, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return i, context.Cause(ctx)
		}
	}
}

// files opens the files of a container.
func (s *Server) files(i incus.Instance) (*rootfs.Root, error) {
	ids, err := rootfs.ParseIDMap(i.Config["volatile.last_state.idmap"])
	if err != nil {
		return nil, err
	}
	return rootfs.Open(s.cfg.containerDir(i.Name)+"/rootfs", ids)
}

// cleaning is a context for the removal of leftovers, when an operation's own
// has ended.
func cleaning() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), cleanWait)
}
