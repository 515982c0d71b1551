package hostcalls

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	// callTime is the deadline of a call that the host answers by itself. A
	// busy host lets calls wait.
	callTime = 10 * time.Second
	// desktopTime is that of one that the host passes on to a desktop.
	desktopTime = 30 * time.Second
	// choiceTime is that of one that a person answers.
	choiceTime = time.Hour
	// maxReply bounds an answer of the host: a list of chosen files.
	maxReply = 1 << 20
)

// A Dialer opens a stream to the host's ContainerListener.
type Dialer func(ctx context.Context) (net.Conn, error)

// DialHost is the Dialer of a container.
func DialHost(ctx context.Context) (net.Conn, error) {
	return vsock.DialHost(ctx, vsock.PortContainerListener)
}

// A Client calls the host in the name of one container. Its methods may be
// used at once.
type Client struct {
	token string
	// keepUp is how often a connection is used at least: the host ends one that
	// was idle for two minutes, and that must not look like the host's end.
	keepUp time.Duration
	conn   *grpc.ClientConn
	host   pb.ContainerListenerClient
}

// New returns the client of the container with a token. It dials with the
// first call, and again whenever the connection is lost.
func New(token string, dial Dialer) (*Client, error) {
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithWriteBufferSize(32<<10),
		grpc.WithIdleTimeout(0), // a call at once is worth an idle stream
	)
	if err != nil {
		return nil, fmt.Errorf("make a client of the host: %w", err)
	}
	return &Client{token: token, keepUp: 40 * time.Second, conn: conn, host: pb.NewContainerListenerClient(conn)}, nil
}

// Close ends the connection and what waits on it.
func (c *Client) Close() error { return c.conn.Close() }

// a call is a method of the generated client.
type call[Req, Resp any] func(pb.ContainerListenerClient, context.Context, Req, ...grpc.CallOption) (Resp, error)

// ask makes one call with a deadline. The host is waited for until then: right
// after a start, or a restart of its service, it is not there yet.
func ask[Req, Resp any](ctx context.Context, c *Client, limit time.Duration, f call[Req, Resp], req Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(c.host, ctx, req, grpc.WaitForReady(true))
}

// tell is ask for an answer that says nothing.
func tell[Req, Resp any](ctx context.Context, c *Client, limit time.Duration, f call[Req, Resp], req Req) error {
	_, err := ask(ctx, c, limit, f, req)
	return err
}

// WaitLost returns when there is no connection, which after a call means that
// the host's service has ended; or when ctx is done.
func (c *Client) WaitLost(ctx context.Context) {
	for state := c.conn.GetState(); state == connectivity.Ready && ctx.Err() == nil; state = c.conn.GetState() {
		some, cancel := context.WithTimeout(ctx, c.keepUp)
		if !c.conn.WaitForStateChange(some, state) && ctx.Err() == nil {
			c.use(ctx)
		}
		cancel()
	}
}

// use makes a call that means nothing. Whether it fails is the connection's to
// show.
func (c *Client) use(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c.host.ReportMetrics(ctx, &pb.ReportMetricsRequest{Token: c.token})
}
