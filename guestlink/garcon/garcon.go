// Package garcon is the host's side of the agents in containers: it calls the
// agent of one container, and hears what those of one VM say.
package garcon

import (
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// Ports on which agents listen.
const (
	FirstPort = 10000
	LastPort  = 19999
)

// limits of what all containers of one VM say. Each has an agent with one
// connection, and programs that open something have one for a moment.
var limits = wire.Limits{Connections: 64, Calls: 32, Message: 4 << 20, Fields: 1 << 18, Memory: 24 << 20,
	Timeout: time.Minute, Idle: 2 * time.Minute,
	Patient: []string{"SelectFile"}} // a person answers it

// maxAnswerFields is enough for the icons that are asked for at once.
const maxAnswerFields = 1 << 14

// maxIcons bounds an answer with icons, in bytes, maxAnswer all others: many
// calls may wait for one at a time.
const (
	maxIcons  = 4 << 20
	maxAnswer = 512 << 10
)

// A Client calls the agent of one container.
type Client struct {
	pb.GarconClient
	conn *wire.Conn
}

// NewClient returns a client that reaches the agent by dial.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	c := &wire.Conn{Dial: dial, MaxMessage: maxAnswer, MaxFields: maxAnswerFields}
	return &Client{GarconClient: pb.NewGarconClient(c), conn: c}
}

// GetIcon is the one call with a long answer.
func (c *Client) GetIcon(ctx context.Context, req *pb.IconRequest, opts ...grpc.CallOption) (*pb.IconResponse, error) {
	return c.GarconClient.GetIcon(ctx, req, append(opts, grpc.MaxCallRecvMsgSize(maxIcons))...)
}

// Close ends calls in progress, and there will be no others.
func (c *Client) Close() { c.conn.Close() }

// Serve hears one VM's containers on l, which is closed with the server.
func Serve(l net.Listener, h pb.ContainerListenerServer, log *slog.Logger) *wire.Server {
	return wire.Serve(l, "what the VM's containers say", limits, log,
		func(s *grpc.Server) { pb.RegisterContainerListenerServer(s, h) })
}
