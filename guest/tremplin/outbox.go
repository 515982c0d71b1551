package tremplin

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	maxNotices     = 1024             // that wait for the host
	noticeTimeout  = 10 * time.Second // of one attempt
	noticePatience = time.Minute      // then a notice is given up that nobody keeps
	noticePauseMin = 20 * time.Millisecond
	noticePauseMax = time.Second
	maxMessage     = 4 << 20
	maxHeaders     = 16 << 10
)

// A notice is one call to the host. Of notices with the same key only the
// last one waits.
type notice struct {
	key  string
	what string
	// keep is for what ends something: however long the host is away, whoever
	// comes back must not wait for that end. It is given up only when the host
	// refuses it, what is forever not even then.
	keep, forever bool
	call          func(context.Context, pb.TremplinListenerClient) error
}

// An outbox tells the host, in order, and again while the host is away.
type outbox struct {
	log  *slog.Logger
	conn *grpc.ClientConn
	host pb.TremplinListenerClient

	mu      sync.Mutex
	waiting []notice
	more    chan struct{}
	idle    chan struct{} // closed when nothing waits; nil when nobody asks
	busy    bool
	sending string // the key of what is being delivered, until that is recalled
}

func newOutbox(log *slog.Logger, dial func(context.Context) (net.Conn, error)) (*outbox, error) {
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: noticePauseMin, Multiplier: 2, MaxDelay: noticePauseMax},
			MinConnectTimeout: noticeTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	if err != nil {
		return nil, err
	}
	return &outbox{log: log, conn: conn, host: pb.NewTremplinListenerClient(conn), more: make(chan struct{}, 1)}, nil
}

// push leaves a notice for the host.
func (o *outbox) push(n notice) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n.key != "" {
		for i := range o.waiting {
			if o.waiting[i].key == n.key {
				o.waiting[i] = n
				return
			}
		}
	}
	if len(o.waiting) >= maxNotices {
		victim := max(0, slices.IndexFunc(o.waiting, func(n notice) bool { return !n.keep && !n.forever }))
		o.log.Error("a notice for the host is lost: too many wait", "notice", o.waiting[victim].what)
		o.waiting = slices.Delete(o.waiting, victim, victim+1)
	}
	o.waiting = append(o.waiting, n)
	select {
	case o.more <- struct{}{}:
	default:
	}
}

// recall takes a notice back that the host has not heard, and is not so any more.
func (o *outbox) recall(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sending == key {
		o.sending = ""
	}
	o.waiting = slices.DeleteFunc(o.waiting, func(n notice) bool { return n.key == key })
}

// run delivers until the context ends.
func (o *outbox) run(ctx context.Context) {
	defer o.conn.Close()
	for {
		n, ok := o.take()
		if !ok {
			select {
			case <-o.more:
			case <-ctx.Done():
				return
			}
			continue
		}
		o.deliver(ctx, n)
		if ctx.Err() != nil {
			return
		}
	}
}

func (o *outbox) take() (notice, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = len(o.waiting) > 0
	if !o.busy {
		if o.idle != nil {
			close(o.idle)
			o.idle = nil
		}
		return notice{}, false
	}
	n := o.waiting[0]
	o.waiting = o.waiting[1:]
	o.sending = n.key
	return n, true
}

func (o *outbox) recalled(n notice) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sending != n.key
}

// flush returns when the host has heard all, or the context ends.
func (o *outbox) flush(ctx context.Context) {
	o.mu.Lock()
	if !o.busy && len(o.waiting) == 0 {
		o.mu.Unlock()
		return
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// deliver tries until the host has taken a notice or will not.
func (o *outbox) deliver(ctx context.Context, n notice) {
	begun := time.Now()
	next := noticePauseMin
	for attempt := 1; ; attempt++ {
		err := o.try(ctx, n)
		switch {
		case err == nil:
			if n.forever {
				o.log.Info("the host has heard", "notice", n.what, "attempts", attempt)
			}
			return
		case ctx.Err() != nil:
			return
		case !n.forever && (!worthRetrying(err) || !n.keep && time.Since(begun) > noticePatience):
			o.log.Error("the host does not take a notice", "notice", n.what, "attempts", attempt, "err", err)
			return
		case attempt == 1:
			o.log.Info("the host does not take a notice yet", "notice", n.what, "err", err)
		}
		pause := time.NewTimer(next)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		if o.recalled(n) {
			return
		}
		next = min(2*next, noticePauseMax)
	}
}

func (o *outbox) try(ctx context.Context, n notice) error {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	return n.call(ctx, o.host)
}

// worthRetrying tells whether the host may take it later: it is starting
// again, or has not looked at this VM yet.
func worthRetrying(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.FailedPrecondition, codes.ResourceExhausted, codes.Aborted, codes.NotFound:
		return true
	}
	return false
}
