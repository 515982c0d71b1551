package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// guests play maitred in the VMs of a crowd. Whatever they are asked to do
// they have done: every call is answered with an empty message, and Shutdown
// ends the VM.
type guests struct {
	server  *grpc.Server
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	served  sync.WaitGroup
}

func newGuests() *guests {
	g := &guests{streams: make(chan net.Conn), done: make(chan struct{})}
	g.server = grpc.NewServer(grpc.UnknownServiceHandler(g.handle))
	g.served.Go(func() { g.server.Serve(g) })
	return g
}

func (g *guests) close() {
	g.server.Stop()
	g.served.Wait()
}

// handle answers any unary call.
func (g *guests) handle(_ any, s grpc.ServerStream) error {
	if err := s.RecvMsg(&pb.EmptyMessage{}); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(s)
	if strings.HasSuffix(method, "/Shutdown") {
		if p, ok := peer.FromContext(s.Context()); ok {
			go p.Addr.(*extra).end("the guest powered off")
		}
	}
	return s.SendMsg(&pb.EmptyMessage{})
}

// serve answers the host's streams to a VM's guest until l is closed.
func (g *guests) serve(l net.Listener, e *extra) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		e.wg.Go(func() {
			r := bufio.NewReaderSize(conn, 256)
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			var port uint32
			line, err := r.ReadString('\n')
			if err == nil {
				_, err = fmt.Sscanf(line, "CONNECT %d\n", &port)
			}
			if err == nil {
				_, err = fmt.Fprintf(conn, "OK %d\n", port)
			}
			if err != nil {
				conn.Close()
				return
			}
			conn.SetReadDeadline(time.Time{})
			select {
			case g.streams <- guestConn{Conn: conn, r: r, vm: e}:
			case <-g.done:
				conn.Close()
			}
		})
	}
}

// A guestConn is a stream that knows to which VM it goes.
type guestConn struct {
	net.Conn
	r  io.Reader
	vm *extra
}

func (c guestConn) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c guestConn) RemoteAddr() net.Addr       { return c.vm }

// Network and String make an extra the address of its guest.
func (e *extra) Network() string { return "stand-in" }
func (e *extra) String() string  { return e.dir }

// Accept, Close and Addr make guests the listener of their own server.
func (g *guests) Accept() (net.Conn, error) {
	select {
	case c := <-g.streams:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

func (g *guests) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

func (g *guests) Addr() net.Addr { return &net.UnixAddr{Name: "guests", Net: "unix"} }

// sayReady calls the host's VmReady as the guest of a VM does.
func sayReady(path string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = pb.NewStartupListenerClient(conn).VmReady(ctx, &pb.EmptyMessage{})
	select {
	case <-ended:
		return nil
	default:
	}
	if err != nil {
		err = errors.Join(errors.New("VmReady"), err)
	}
	return err
}
