package wire

import (
	"context"
	"net"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink"
)

// linger is how long a connection to a guest outlives a call. A guest is
// called a few times when its VM starts and hardly ever afterwards, and an
// open connection takes eight goroutines and some 40 KiB, an idle one of
// gRPC's still three goroutines.
const linger = time.Second

// answerWindow is how much of an answer a guest may send before any of it is
// read here, in bytes: what is longer has to wait for our word, which takes
// milliseconds when the guest is emulated. gRPC's own is too small for icons,
// and finding a better one means asking the guest again and again.
const answerWindow = 256 << 10

// connectTimeout bounds one attempt to reach an agent, as on ChromeOS.
const connectTimeout = 5 * time.Second

// settleTime bounds the wait for the state of a connection on which a call failed.
const settleTime = 100 * time.Millisecond

// A Conn connects to a guest's agent for as long as there are calls.
type Conn struct {
	// Dial reaches the agent.
	Dial func(context.Context) (net.Conn, error)
	// Observe may be nil.
	Observe func(guestlink.Call)
	// MaxMessage bounds what the agent answers, in bytes, MaxFields how many
	// fields an answer may have at all depths; zero leaves that open.
	MaxMessage, MaxFields int

	mu     sync.Mutex
	open   *grpc.ClientConn
	calls  int         // in progress
	begun  int         // calls so far
	rest   *time.Timer // runs while open is without calls
	closed bool
	// resting counts the timers that will fire.
	resting sync.WaitGroup
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// take returns a connection that stays until it is given back.
func (c *Conn) take() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, status.Error(codes.Canceled, "the link to the guest is closed")
	}
	c.stopRest()
	if c.open == nil {
		answers := []grpc.CallOption{grpc.MaxCallRecvMsgSize(c.MaxMessage), grpc.WaitForReady(false)}
		if c.MaxFields > 0 {
			answers = append(answers, grpc.ForceCodecV2(newFewFields(c.MaxFields)))
		}
		open, err := grpc.NewClient("passthrough:///agent",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.connect(ctx) }),
			grpc.WithDefaultCallOptions(answers...),
			grpc.WithMaxHeaderListSize(MaxHeaders),
			grpc.WithReadBufferSize(Buffer), grpc.WithWriteBufferSize(Buffer),
			grpc.WithStaticStreamWindowSize(answerWindow), grpc.WithStaticConnWindowSize(answerWindow),
			grpc.WithNoProxy())
		if err != nil {
			return nil, err
		}
		c.open = open
	}
	c.calls++
	c.begun++
	return c.open, nil
}

func (c *Conn) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return c.Dial(ctx)
}

func (c *Conn) giveBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.calls > 0 || c.closed {
		return
	}
	c.resting.Add(1)
	begun := c.begun
	c.rest = time.AfterFunc(linger, func() { c.hangUp(begun) })
}

// stopRest keeps the timer from hanging up, if it has not begun to.
func (c *Conn) stopRest() {
	if c.rest != nil && c.rest.Stop() {
		c.resting.Done()
	}
	c.rest = nil
}

// hangUp closes the connection unless a call has begun since.
func (c *Conn) hangUp(begun int) {
	defer c.resting.Done()
	c.mu.Lock()
	var unused *grpc.ClientConn
	if c.begun == begun {
		unused, c.open = c.open, nil
	}
	c.mu.Unlock()
	if unused != nil {
		unused.Close()
	}
}

// renew has the next call dial anew: gRPC itself would fail calls for a second
// and longer after it has not reached an agent, which may be there by then.
func (c *Conn) renew(failed *grpc.ClientConn) {
	c.mu.Lock()
	if c.open != failed {
		failed = nil
	} else {
		c.open = nil
	}
	c.mu.Unlock()
	if failed != nil {
		failed.Close()
	}
}

// renewed says whether another call has had a connection renewed: gRPC tells that
// the others on it were cancelled.
func (c *Conn) renewed(open *grpc.ClientConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed && c.open != open
}

// unreached says whether a call was unavailable because the agent was not reached.
// gRPC fails the call a moment before it tells so of the connection.
func unreached(ctx context.Context, conn *grpc.ClientConn) bool {
	state := conn.GetState()
	if state == connectivity.Connecting {
		ctx, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		conn.WaitForStateChange(ctx, state)
		state = conn.GetState()
	}
	return state == connectivity.TransientFailure
}

// Close ends calls in progress, and there will be no others.
func (c *Conn) Close() {
	c.mu.Lock()
	c.closed = true
	c.stopRest()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	if open != nil {
		open.Close()
	}
	c.resting.Wait()
}

// Invoke implements grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	open, err := c.take()
	if err != nil {
		return err
	}
	defer c.giveBack()
	began := time.Now()
	err = open.Invoke(ctx, method, args, reply, opts...)
	if status.Code(err) == codes.Canceled && ctx.Err() == nil && c.renewed(open) {
		err = status.Error(codes.Unavailable, "another call at the same time did not reach it")
	}
	code := status.Code(err)
	if code == codes.Unavailable && unreached(ctx, open) {
		c.renew(open)
	}
	if c.Observe == nil {
		return err
	}
	if code > codes.Unauthenticated {
		code = codes.Unknown // a guest can make up as many as it likes
	}
	c.Observe(guestlink.Call{Method: path.Base(method), Took: time.Since(began), Code: code.String(),
		Answered: code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled})
	return err
}

// NewStream implements grpc.ClientConnInterface: agents have no streams.
func (c *Conn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams are not supported")
}
