package maitred

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Redialling VmReady: at once at first, then ever slower.
const (
	readyPauseMin = 20 * time.Millisecond
	readyPauseMax = time.Second
	readyAttempt  = 10 * time.Second // of one attempt; a busy host lets calls queue
)

// readyPort is the host's port for VmReady.
func readyPort(p core.Params) uint32 {
	if p.ListenPort != 0 {
		return p.ListenPort
	}
	return vsock.PortStartupListener
}

// announce tells the host that this VM is ready, until the host has heard it
// or the context ends.
func announce(ctx context.Context, log *slog.Logger, port uint32) {
	a := announcer{log: log, dial: func(ctx context.Context) (net.Conn, error) {
		return vsock.DialHost(ctx, port)
	}}
	a.run(ctx)
}

type announcer struct {
	log  *slog.Logger
	dial func(context.Context) (net.Conn, error)
}

func (a *announcer) run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	next := readyPauseMin
	for attempt := 1; ; attempt++ {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		err := a.try(ctx)
		if err == nil {
			a.log.Info("the host knows that this VM is ready", "attempts", attempt)
			return
		}
		if ctx.Err() != nil {
			return
		}
		a.report(attempt, next, err)
		pause.Reset(next)
		next = min(2*next, readyPauseMax)
	}
}

// report tells of the first failure, and again when patience begins to run
// out, so that a console says why a VM never became ready.
func (a *announcer) report(attempt int, pause time.Duration, err error) {
	switch {
	case attempt == 1:
		a.log.Info("the host does not take VmReady yet", "err", err)
	case pause == readyPauseMax && attempt%10 == 0:
		a.log.Error("the host still does not take VmReady", "attempts", attempt, "err", err)
	}
}

// try makes one call on a connection of its own: grpc would wait a second
// before it dials again.
func (a *announcer) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyAttempt)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return a.dial(ctx) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = pb.NewStartupListenerClient(conn).VmReady(ctx, &pb.EmptyMessage{})
	return err
}
