package dbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// ErrNoCicerone means that vm_cicerone is not on the bus, and was not to be
// started.
var ErrNoCicerone = errors.New("vm_cicerone is not on the bus")

// A CiceroneClient is how vm_concierge speaks to vm_cicerone. It has a
// connection of its own, made when it is needed and again when it was lost.
type CiceroneClient struct{ daemonClient }

// NewCiceroneClient makes one for the bus at an address such as Options.Bus.
func NewCiceroneClient(bus string, log *slog.Logger) *CiceroneClient {
	return &CiceroneClient{daemonClient{bus: bus, name: CiceroneName, log: log}}
}

// NotifyVmStarted says that there is a VM to look at. It starts nothing, and
// nor do the next two.
func (c *CiceroneClient) NotifyVmStarted(ctx context.Context, req *ciceronepb.NotifyVmStartedRequest) error {
	return c.notify(ctx, "NotifyVmStarted", req)
}

// NotifyVmStopping says that a VM is about to stop.
func (c *CiceroneClient) NotifyVmStopping(ctx context.Context, req *ciceronepb.NotifyVmStoppingRequest) error {
	return c.notify(ctx, "NotifyVmStopping", req)
}

// NotifyVmStopped says that a VM has gone.
func (c *CiceroneClient) NotifyVmStopped(ctx context.Context, req *ciceronepb.NotifyVmStoppedRequest) error {
	return c.notify(ctx, "NotifyVmStopped", req)
}

func (c *CiceroneClient) notify(ctx context.Context, member string, req proto.Message) error {
	data, err := proto.Marshal(req)
	if err == nil {
		err = c.call(ctx, CiceroneInterface, member, flagNoAutoStart, payloadBody(data))
	}
	if err != nil {
		return fmt.Errorf("call %s of vm_cicerone: %w", member, err)
	}
	return nil
}

// Start has the bus start vm_cicerone when it is not there.
func (c *CiceroneClient) Start(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err == nil && conn.to() == "" {
		_, err = conn.start(ctx)
	}
	return err
}

// EnsureContainer returns when a container of a VM runs. It starts vm_cicerone
// when that is not there.
func (c *CiceroneClient) EnsureContainer(ctx context.Context, cid uint32, container, user string) error {
	b, err := plainBody(cid, container, user)
	if err == nil {
		err = c.call(ctx, Cicerone1Name, "EnsureContainer", 0, b)
	}
	var answer *callError
	if errors.As(err, &answer) {
		return errors.New(answer.text) // the reason, for people
	}
	return err
}

// call calls a method and throws what it returns away.
func (c *CiceroneClient) call(ctx context.Context, iface, member string, flags byte, b body) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	// Nobody else's answer is taken for the daemon's: a call goes to its
	// connection where there is one.
	to := conn.to()
	if to == "" && flags&flagNoAutoStart != 0 {
		return ErrNoCicerone
	}
	if to == "" {
		if to, err = conn.start(ctx); err != nil {
			return err
		}
	}
	m, err := conn.link.call(ctx, &outgoing{typ: typeCall, flags: flags, destination: to,
		path: CiceronePath, iface: iface, member: member, body: b})
	if err != nil {
		return err
	}
	defer m.closeFDs()
	if _, err := decodeReply(m); gone(err) {
		return fmt.Errorf("%w any more", ErrNoCicerone)
	} else if err != nil {
		return err
	}
	return nil
}

// start has the bus start the daemon, and returns its connection.
func (c *daemonConn) start(ctx context.Context) (owner string, err error) {
	var started uint32
	if err := c.link.driver(ctx, "StartServiceByName", []any{c.name, uint32(0)}, &started); err != nil {
		return "", fmt.Errorf("start %s: %w", c.name, err)
	}
	err = c.link.driver(ctx, "GetNameOwner", []any{c.name}, &owner)
	return owner, err
}
