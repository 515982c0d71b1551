package e2e

import (
	"context"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/test/testbed"
)

// startCicerone starts vm_cicerone beside vm_concierge.
func (b *bed) startCicerone(args ...string) *testbed.Daemon {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	d, err := b.StartCicerone(ctx, args...)
	if err != nil {
		b.t.Fatalf("start vm_cicerone: %v\n%s", err, b.log)
	}
	return d
}

// cicerone calls a method of vm_cicerone.
func (c *client) cicerone(method string, req, resp proto.Message) error {
	c.t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		c.t.Fatal(err)
	}
	var out []byte
	if err := c.cicerone1(dbus.CiceroneInterface+"."+method, b).Store(&out); err != nil {
		return err
	}
	if err := proto.Unmarshal(out, resp); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return nil
}

// cicerone1 calls a method of vm_cicerone with plain arguments.
func (c *client) cicerone1(method string, args ...any) *godbus.Call {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.conn.Object(dbus.CiceroneName, dbus.CiceronePath).CallWithContext(ctx, method, 0, args...)
}
