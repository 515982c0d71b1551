// Package e2e tests Auberge end to end: real clients on a real bus, the real
// daemons as users of their own, real VMs under emulation. `make test` gives
// it the built programs and the guest image.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/test/testbed"
)

var bin, image string

func TestMain(m *testing.M) {
	if err := testbed.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin, image = os.Getenv("AUBERGE_BIN"), os.Getenv("AUBERGE_IMAGE_DIR")
	if bin == "" || image == "" {
		fmt.Fprintln(os.Stderr, "e2e: set AUBERGE_BIN and AUBERGE_IMAGE_DIR, or use make test")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience bounds whatever a test waits for; nothing is asserted on it.
const patience = 3 * time.Minute

// A bed is a testbed with vm_concierge running.
type bed struct {
	*testbed.Bed
	t         *testing.T
	concierge *testbed.Daemon
	log       *syncbuf.Buffer
}

// newBed starts a bus and vm_concierge; everything ends with the test.
func newBed(t *testing.T, args ...string) *bed {
	t.Helper()
	b := newBedWith(t, testbed.Options{})
	b.startConcierge(args...)
	return b
}

// newBedWith starts a bus with options that go beyond what every test has.
func newBedWith(t *testing.T, o testbed.Options) *bed {
	t.Helper()
	log := &syncbuf.Buffer{}
	o.Bin, o.Image, o.Log = bin, image, log
	b, err := testbed.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if t.Failed() {
			t.Logf("daemons said:\n%s", log)
		}
	})
	return &bed{Bed: b, t: t, log: log}
}

func (b *bed) startConcierge(args ...string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	d, err := b.StartConcierge(ctx, append([]string{"--accel", "tcg"}, args...)...)
	if err != nil {
		b.t.Fatalf("start vm_concierge: %v\n%s", err, b.log)
	}
	b.concierge = d
}

// A client is a user's connection to the bus.
type client struct {
	t    *testing.T
	bed  *bed
	user testbed.User
	conn *godbus.Conn
}

func (b *bed) client(u testbed.User) *client {
	b.t.Helper()
	conn, err := b.Dial(b.t.Context(), u)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return &client{t: b.t, bed: b, user: u, conn: conn}
}

func (c *client) object() godbus.BusObject {
	return c.conn.Object(dbus.ConciergeName, dbus.ConciergePath)
}

// call sends one request and returns the error of the bus.
func (c *client) call(method string, req, resp proto.Message, fds ...*os.File) error {
	c.t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		c.t.Fatal(err)
	}
	args := []any{b}
	if len(fds) > 0 {
		var u []godbus.UnixFD
		for _, f := range fds {
			u = append(u, godbus.UnixFD(f.Fd()))
		}
		args = append(args, u)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	var out []byte
	if err := c.object().CallWithContext(ctx, dbus.ConciergeInterface+"."+method, 0, args...).Store(&out); err != nil {
		return err
	}
	if err := proto.Unmarshal(out, resp); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return nil
}

// must is call for a method that the bus is expected to let through.
func (c *client) must(method string, req, resp proto.Message, fds ...*os.File) {
	c.t.Helper()
	if err := c.call(method, req, resp, fds...); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
}

// own calls a method of our own interface.
func (c *client) own(method string, args ...any) *godbus.Call {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.object().CallWithContext(ctx, dbus.Concierge1Name+"."+method, 0, args...)
}

// run runs one of our programs as the client's user and returns what it
// printed.
func (c *client) run(name string, args ...string) (string, string, error) {
	c.t.Helper()
	cmd := c.bed.Command(c.user, name, args...)
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err
}

// gone checks that no VM left anything behind. What was told may be a moment
// ahead of the last trace's end.
func (b *bed) gone() {
	b.t.Helper()
	b.await("wait until no VM has left anything", func() bool { return len(b.leftovers()) == 0 && len(b.Processes()) == 0 })
}
