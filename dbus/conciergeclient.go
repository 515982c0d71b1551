package dbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// ErrNoConcierge means that vm_concierge is not on the bus. It is not started
// for a question: whoever runs VMs runs it.
var ErrNoConcierge = errors.New("vm_concierge is not on the bus")

const (
	// conciergeTimeout bounds one answer.
	conciergeTimeout = 25 * time.Second
	// conciergeMessage is the longest answer that is read: a line for each VM.
	conciergeMessage = 8 << 20
)

// A ConciergeClient is how Auberge's other daemons ask vm_concierge, by the
// methods that are for daemons. It has a connection of its own, made when it is
// needed and again when it was lost.
type ConciergeClient struct{ daemonClient }

// NewConciergeClient makes one for the bus at an address such as Options.Bus.
func NewConciergeClient(bus string, log *slog.Logger) *ConciergeClient {
	return &ConciergeClient{daemonClient{bus: bus, name: ConciergeName, log: log}}
}

// A daemonClient follows one of Auberge's daemons on a bus.
type daemonClient struct {
	bus, name string
	log       *slog.Logger

	mu   sync.Mutex
	conn *daemonConn
}

// A daemonConn is one connection.
type daemonConn struct {
	name string // the daemon's
	link *link
	done chan struct{} // closed when nothing is read any more
	news chan struct{} // holds one when the owner has changed

	mu sync.Mutex
	// owner is the daemon's connection, empty when there is none.
	owner string
	told  bool // the bus has said so
}

// Run calls resync whenever the daemon is another one than before, and once
// at the beginning if there is one, until ctx is done.
func (c *daemonClient) Run(ctx context.Context, resync func(context.Context)) {
	delay, logged := minRedial, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := c.follow(ctx, resync)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxRedial {
			delay, logged = minRedial, ""
		}
		if err.Error() != logged {
			logged = err.Error()
			c.log.Debug("not in touch with another daemon, will try again and again", "name", c.name, "err", err)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
		delay = min(2*delay, maxRedial)
	}
}

// follow is Run for as long as one connection lasts.
func (c *daemonClient) follow(ctx context.Context, resync func(context.Context)) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	last := ""
	for {
		if owner := conn.to(); owner != last {
			if last = owner; owner != "" {
				resync(ctx)
			}
		}
		select {
		case <-conn.news:
		case <-conn.done:
			return errClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close ends the connection. A later call makes a new one.
func (c *daemonClient) Close() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		conn.close()
	}
}

// ListVmEndpoints lists the VMs that run, each as a dictionary.
func (c *ConciergeClient) ListVmEndpoints(ctx context.Context) ([]map[string]any, error) {
	r, err := c.call(ctx, "ListVmEndpoints")
	if err != nil {
		return nil, err
	}
	defer closeFiles(r.files)
	var list []map[string]dbus.Variant
	if err := r.store(&list); err != nil {
		return nil, err
	}
	out := make([]map[string]any, len(list))
	for i, d := range list {
		out[i] = values(d)
	}
	return out, nil
}

// OpenVmEndpoints returns what a VM is, and where its streams to the host's
// ports for tremplin, crash reports and containers arrive. The files are the
// caller's.
func (c *ConciergeClient) OpenVmEndpoints(ctx context.Context, cid uint32) (vm map[string]any, tremplin, crash, container *os.File, err error) {
	r, err := c.call(ctx, "OpenVmEndpoints", cid)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	var d map[string]dbus.Variant
	var fds [3]dbus.UnixFD
	if err := r.store(&d, &fds[0], &fds[1], &fds[2]); err != nil || len(r.files) != 3 {
		closeFiles(r.files)
		return nil, nil, nil, nil, fmt.Errorf("OpenVmEndpoints of vm_concierge: %d descriptors instead of 3: %w", len(r.files), errors.Join(errMalformed, err))
	}
	return values(d), r.files[0], r.files[1], r.files[2], nil
}

// ConnectVmVsock returns a stream to a port of a VM's guest. The file is the
// caller's.
func (c *ConciergeClient) ConnectVmVsock(ctx context.Context, cid, port uint32) (*os.File, error) {
	r, err := c.call(ctx, "ConnectVmVsock", cid, port)
	if err != nil {
		return nil, err
	}
	var fd dbus.UnixFD
	if err := r.store(&fd); err != nil || len(r.files) != 1 {
		closeFiles(r.files)
		return nil, fmt.Errorf("ConnectVmVsock of vm_concierge: %d descriptors instead of 1: %w", len(r.files), errors.Join(errMalformed, err))
	}
	return r.files[0], nil
}

// TremplinReady says that a VM's containers can be managed.
func (c *ConciergeClient) TremplinReady(ctx context.Context, cid uint32) error {
	r, err := c.call(ctx, "TremplinReady", cid)
	if err == nil {
		closeFiles(r.files)
	}
	return err
}

// GetContainerKeys returns the key by which a container lets its owner in, and
// the one by which its owner knows it.
func (c *ConciergeClient) GetContainerKeys(ctx context.Context, cid uint32, container string) (authorized, hostPrivate string, err error) {
	r, err := c.call(ctx, "GetContainerKeys", cid, container)
	if err != nil {
		return "", "", err
	}
	defer closeFiles(r.files)
	err = r.store(&authorized, &hostPrivate)
	return authorized, hostPrivate, err
}

// A conciergeReply is an answer. The files are in the order of its values.
type conciergeReply struct {
	member string
	body   []any
	files  []*os.File
}

func (r *conciergeReply) store(to ...any) error {
	if err := dbus.Store(r.body, to...); err != nil {
		return fmt.Errorf("%s of vm_concierge answers something else: %w", r.member, err)
	}
	return nil
}

func values(d map[string]dbus.Variant) map[string]any {
	out := make(map[string]any, len(d))
	for k, v := range d {
		out[k] = v.Value()
	}
	return out
}

// call calls a method of our own interface, by the connection's name: nobody
// else's answer is taken for vm_concierge's, and nothing is started.
func (c *ConciergeClient) call(ctx context.Context, member string, args ...any) (*conciergeReply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, conciergeTimeout, fmt.Errorf("it took more than %v", conciergeTimeout))
	defer cancel()
	r, err := c.tryCall(ctx, member, args)
	if err != nil {
		return nil, fmt.Errorf("call %s of vm_concierge: %w", member, err)
	}
	return r, nil
}

func (c *ConciergeClient) tryCall(ctx context.Context, member string, args []any) (*conciergeReply, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	b, err := plainBody(args...)
	if err != nil {
		return nil, err
	}
	to := conn.to()
	if to == "" {
		return nil, ErrNoConcierge
	}
	m, err := conn.link.call(ctx, &outgoing{typ: typeCall, flags: flagNoAutoStart, destination: to,
		path: ConciergePath, iface: Concierge1Name, member: member, body: b})
	if err != nil {
		return nil, err
	}
	body, err := decodeReply(m)
	if err != nil {
		m.closeFDs()
		if gone(err) {
			return nil, fmt.Errorf("%w any more", ErrNoConcierge)
		}
		return nil, err
	}
	r := &conciergeReply{member: member, body: body}
	var indexes []uint32
	for i := range m.fds {
		indexes = append(indexes, uint32(i))
	}
	r.files = m.takeFiles(indexes)
	return r, nil
}

// connect returns the connection, which may have to be made.
func (c *daemonClient) connect(ctx context.Context) (*daemonConn, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil && !conn.ended() {
		return conn, nil
	}
	fresh, err := connectDaemon(ctx, c.bus, c.name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.conn == nil || c.conn.ended() {
		conn, c.conn = c.conn, fresh
	} else { // another call was faster
		conn, fresh = fresh, c.conn
	}
	c.mu.Unlock()
	if conn != nil {
		conn.close()
	}
	return fresh, nil
}

func connectDaemon(ctx context.Context, bus, name string) (*daemonConn, error) {
	sock, err := dial(ctx, bus)
	if err != nil {
		return nil, err
	}
	c := &daemonConn{name: name, link: newLink(sock, conciergeTimeout), done: make(chan struct{}), news: make(chan struct{}, 1)}
	go c.read()
	if err := c.setUp(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *daemonConn) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var me, owner string
	if err := c.link.driver(ctx, "Hello", nil, &me); err != nil {
		return err
	}
	if err := c.link.driver(ctx, "AddMatch", []any{nameOwnerRule + ",arg0='" + c.name + "'"}); err != nil {
		return err
	}
	err := c.link.driver(ctx, "GetNameOwner", []any{c.name}, &owner)
	var answer *callError
	if err != nil && !errors.As(err, &answer) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told { // or it is another one by now
		c.owner = owner
	}
	return nil
}

// read reads until the connection ends.
func (c *daemonConn) read() {
	defer close(c.done)
	defer c.link.close()
	c.link.read(conciergeMessage, c.signal)
}

func (c *daemonConn) signal(m *message) error {
	if m.sender != driverName || m.iface != driverName || m.member != "NameOwnerChanged" {
		return nil
	}
	r := bodyReader{order: m.order, b: m.bodyBytes()}
	name, _, owner := r.string(), r.string(), r.string()
	if r.end() != nil || name != c.name {
		return nil
	}
	c.mu.Lock()
	c.owner, c.told = owner, true
	c.mu.Unlock()
	select {
	case c.news <- struct{}{}:
	default:
	}
	return nil
}

// to is whom calls go to.
func (c *daemonConn) to() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner
}

func (c *daemonConn) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *daemonConn) close() {
	c.link.close()
	<-c.done
}
