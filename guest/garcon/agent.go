package garcon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/auberge-vm/auberge/guest/garcon/ansible"
	"github.com/auberge-vm/auberge/guest/garcon/hostcalls"
	"github.com/auberge-vm/auberge/guest/garcon/packagekit"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	"github.com/auberge-vm/auberge/guest/garcon/sftp"
	"github.com/auberge-vm/auberge/guest/garcon/shells"
	"github.com/auberge-vm/auberge/guest/garcon/watch"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// The agent's ports are free ones of these, from a random one on: by its ports
// the host knows whether an agent that reports again is the same process.
const (
	firstPort = 10000
	lastPort  = 19999
)

const (
	// readyPause is between attempts to tell the host that we are there.
	readyPauseMin = 100 * time.Millisecond
	readyPauseMax = 2 * time.Second

	// The end takes the sum of these at the most, which is less than the
	// TimeoutStopSec of our unit: workTime is for what goes on, flushTime for
	// notices that still wait, goodbyeTime for the host to hear of the end,
	// and callsTime, twice, for calls of the host.
	workTime    = 5 * time.Second
	flushTime   = 2 * time.Second
	goodbyeTime = 2 * time.Second
	callsTime   = time.Second
)

// Parts are what knows applications. Any may be missing.
type Parts struct {
	Applications Applications
	Icons        Icons
	// DesktopFile finds the file of an application's id.
	DesktopFile func(id string) (string, error)
	// Describe gives lines for GetDebugInformation.
	Describe func() string
	// Ready is called when the host has taken ContainerReady, each time: what
	// it knew before, it may have forgotten. It returns at once.
	Ready func()
	// Run goes on until ctx is done.
	Run func(ctx context.Context)
}

// Tools are what parts are made with.
type Tools struct {
	User     session.User
	Environ  []string
	Host     *hostcalls.Client
	Queue    *hostcalls.Queue
	Packages *packagekit.Client
	Log      *slog.Logger
}

// A Config says how an agent runs.
type Config struct {
	User      session.User
	Environ   []string
	TokenPath string
	Dial      hostcalls.Dialer
	// Listen opens a vsock port to the host.
	Listen   func(port uint32) (net.Listener, error)
	VshdPath string
	SFTPPath string // no sftp without such a file
	Packages *packagekit.Client
	// Parts makes the parts that know applications.
	Parts func(Tools) (Parts, error)
	// Status tells systemd how far it is: sd_notify(3) states.
	Status func(state string)
	Log    *slog.Logger
}

// Run is the agent until ctx is done.
func Run(ctx context.Context, c Config) error {
	c.Status("STATUS=waiting for the container's token")
	token, err := hostcalls.WaitToken(ctx, c.TokenPath)
	if err != nil {
		return err
	}
	host, err := hostcalls.New(token, c.Dial)
	if err != nil {
		return err
	}
	defer host.Close()
	a := &agent{Config: c, host: host, queue: hostcalls.NewQueue(c.Log)}
	return a.run(ctx)
}

type agent struct {
	Config
	host  *hostcalls.Client
	queue *hostcalls.Queue
}

func (a *agent) run(ctx context.Context) error {
	l, port, err := a.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	s, n := a.server()
	if s.files, err = watch.NewFiles(a.User.Home, n.fileChanged, a.Log); err != nil {
		return err
	}
	if a.Parts != nil {
		tools := Tools{User: a.User, Environ: a.Environ, Host: a.host, Queue: a.queue, Packages: a.Packages, Log: a.Log}
		if s.parts, err = a.Parts(tools); err != nil {
			return err
		}
	}

	// What ends first comes last: while the others end, notices still go out.
	var work, calls sync.WaitGroup
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	sending, stopSending := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSending()
	var sender sync.WaitGroup
	sender.Go(func() { a.queue.Run(sending) })

	a.startSFTP(working, &work, s)
	face := s.register()
	served := make(chan error, 1)
	calls.Go(func() { served <- face.Serve(l) })
	work.Go(func() { s.files.Run(working) })
	work.Go(func() { watch.NewDisk(a.User.Home, n.lowSpace, a.Log).Run(working) })
	work.Go(func() { a.announce(working, port, s.sftpPort, s.parts.Ready) })
	if s.parts.Run != nil {
		work.Go(func() { s.parts.Run(working) })
	}
	a.Status("READY=1\nSTATUS=serving the host on vsock port " + fmt.Sprint(port))

	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serve the host on vsock port %d: %w", port, err)
	}
	a.Status("STOPPING=1")
	stopWork()
	a.await("its work", workTime, s.operations.Close, s.playbooks.Close, work.Wait)
	stopSending()
	sender.Wait()
	a.goodbye(ctx)
	a.await("a call of the host", 2*callsTime, func() { endCalls(face) }, calls.Wait)
	s.shells.Close()
	return err
}

// await waits until all of these have ended. What hangs ends with the process:
// it must not keep the host from hearing of that.
func (a *agent) await(what string, limit time.Duration, ends ...func()) {
	var all sync.WaitGroup
	for _, end := range ends {
		all.Go(end)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); all.Wait() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		a.Log.Warn("the agent ends in the middle of "+what, "waited", limit)
	}
}

func (a *agent) server() (*server, notices) {
	n := notices{a.host, a.queue}
	return &server{
		log:        a.Log,
		user:       a.User,
		environ:    a.Environ,
		shells:     shells.New(a.VshdPath, a.User.Home, a.Log),
		packages:   a.Packages,
		operations: packagekit.NewOperations(a.Packages, packageNotices{n}, a.Log),
		playbooks:  ansible.New(session.Environ(a.Environ, nil, nil), playbookNotices{n}, a.Log),
	}, n
}

// listen takes a free port.
func (a *agent) listen() (net.Listener, uint32, error) {
	const ports = lastPort - firstPort + 1
	first := rand.Uint32N(ports)
	for i := range uint32(ports) {
		port := firstPort + (first+i)%ports
		l, err := a.Listen(port)
		switch {
		case err == nil:
			return l, port, nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, 0, fmt.Errorf("listen for the host on vsock port %d: %w", port, err)
		}
	}
	return nil, 0, fmt.Errorf("listen for the host: all vsock ports from %d to %d are taken", firstPort, lastPort)
}

// startSFTP serves the user's files if there is a server for them; without one
// the agent is useful all the same.
func (a *agent) startSFTP(ctx context.Context, work *sync.WaitGroup, s *server) {
	if _, err := os.Stat(a.SFTPPath); err != nil {
		a.Log.Info("the host cannot have the user's files: no sftp-server (sudo apt install openssh-sftp-server)", "path", a.SFTPPath)
		return
	}
	l, port, err := a.listen()
	if err != nil {
		a.Log.Warn("the host cannot have the user's files", "err", err)
		return
	}
	s.sftpPort = port
	files := &sftp.Server{Path: a.SFTPPath, Dir: a.User.Home, Env: session.Environ(a.Environ, nil, nil), Log: a.Log}
	work.Go(func() {
		if err := files.Serve(ctx, l); err != nil {
			a.Log.Error("the host cannot have the user's files any more", "err", err)
		}
	})
}

// announce tells the host where we are until the host has taken it, and again
// whenever the host's service has gone and may have forgotten us.
func (a *agent) announce(ctx context.Context, port, sftpPort uint32, ready func()) {
	for ctx.Err() == nil {
		a.tellReady(ctx, port, sftpPort)
		if ready != nil && ctx.Err() == nil {
			ready()
		}
		a.host.WaitLost(ctx)
		rest(ctx, readyPauseMin)
	}
}

func (a *agent) tellReady(ctx context.Context, port, sftpPort uint32) {
	pause := readyPauseMin
	for attempt := 1; ; attempt++ {
		err := a.host.ContainerReady(ctx, &pb.ContainerStartupInfo{GarconPort: port, SftpPort: sftpPort})
		switch {
		case err == nil:
			a.Log.Info("the host knows that this container is ready", "attempts", attempt)
			return
		case ctx.Err() != nil:
			return
		case attempt == 1 || attempt%30 == 0:
			a.Log.Warn("the host does not take ContainerReady yet", "attempts", attempt, "err", err)
		}
		rest(ctx, pause)
		pause = min(2*pause, readyPauseMax)
	}
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// goodbye says what is left to say, and that the container's agent ends.
func (a *agent) goodbye(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	flushing, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	a.queue.Flush(flushing)
	ctx, cancel = context.WithTimeout(ctx, goodbyeTime)
	defer cancel()
	if err := a.host.ContainerShutdown(ctx, &pb.ContainerShutdownInfo{}); err != nil {
		a.Log.Warn("the host was not told of the end", "err", err)
	}
}

// endCalls lets calls of the host end, for a while.
func endCalls(face *grpc.Server) {
	t := time.AfterFunc(callsTime, face.Stop)
	defer t.Stop()
	face.GracefulStop()
}
