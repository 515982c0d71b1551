package dbus

import (
	"context"
	"testing"

	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// A rawClient sends what godbus would not, or not soon.
type rawClient struct {
	*link
	r *reader
	t testing.TB
}

func rawConnect(t testing.TB, bus *dbustest.Bus) *rawClient {
	t.Helper()
	sock, err := dial(context.Background(), bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	c := &rawClient{link: newLink(sock, patience), r: newReader(sock, maxMessage), t: t}
	c.roundTrip(&outgoing{typ: typeCall, path: driverPath, iface: driverName, member: "Hello", destination: driverName})
	return c
}

// roundTrip sends a call and returns its answer.
func (c *rawClient) roundTrip(o *outgoing) *message {
	c.t.Helper()
	serial, err := c.transmit(o, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.awaitReply(serial)
}

func (c *rawClient) awaitReply(serial uint32) *message {
	c.t.Helper()
	for {
		m, err := c.r.next()
		if err != nil {
			c.t.Fatal(err)
		}
		if m.replySerial == serial {
			return m
		}
		m.closeFDs()
	}
}

// sendRaw sends bytes as they are. They must be a message with the serial.
func (c *rawClient) sendRaw(raw []byte) {
	c.t.Helper()
	if err := write(c.sock, raw, nil, patience); err != nil {
		c.t.Fatal(err)
	}
}

func infoCall(payload []byte) *outgoing {
	return &outgoing{
		typ: typeCall, path: ConciergePath, iface: ConciergeInterface, member: "GetVmInfo",
		destination: ConciergeName, body: payloadBody(payload),
	}
}

func TestFileDescriptorsToAConnectionThatTakesNone(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{connectVsock: oneFile(t)}, Options{})
	c := withoutDescriptors(t, bus)
	_, err := invoke(t, c, Concierge1Name, "ConnectVsock", "vm", "", uint32(1))
	wantError(t, err, errNotSupported)
}
