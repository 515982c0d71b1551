// Package tremplin is the host's side of the container manager's agent: it
// calls the agent of one VM, and hears what that reports.
package tremplin

import (
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/auberge-vm/auberge/guestlink/wire"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// limits of what one VM's agent reports: it is one program, with a report per
// operation.
var limits = wire.Limits{Connections: 8, Calls: 16, Message: 1 << 20, Fields: 1 << 15, Memory: 4 << 20,
	Timeout: time.Minute, Idle: 2 * time.Minute}

// maxAnswer, in bytes, and maxAnswerFields are far more than any answer has:
// many calls may wait for one at a time.
const (
	maxAnswer       = 512 << 10
	maxAnswerFields = 1 << 12
)

// A Client calls the agent of one VM. Nothing is dialled before the first call.
type Client struct {
	pb.TremplinClient
	conn *wire.Conn
}

// NewClient returns a client that reaches the agent by dial.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	c := &wire.Conn{Dial: dial, MaxMessage: maxAnswer, MaxFields: maxAnswerFields}
	return &Client{TremplinClient: pb.NewTremplinClient(c), conn: c}
}

// Close ends calls in progress, and there will be no others.
func (c *Client) Close() { c.conn.Close() }

// Serve hears one VM's agent on l, which is closed with the server.
func Serve(l net.Listener, h pb.TremplinListenerServer, log *slog.Logger) *wire.Server {
	return wire.Serve(l, "reports of the VM's containers", limits, log,
		func(s *grpc.Server) { pb.RegisterTremplinListenerServer(s, h) })
}
