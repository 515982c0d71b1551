package dbus

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// unknownFields are n fields of every wire type that no message has.
func unknownFields(n int) []byte {
	var b []byte
	for i := range n {
		number := protowire.Number(20_000 + i)
		switch i % 5 {
		case 0:
			b = protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), 1<<63)
		case 1:
			b = protowire.AppendFixed32(protowire.AppendTag(b, number, protowire.Fixed32Type), 7)
		case 2:
			b = protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), 7)
		case 3:
			b = protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), []byte("a later version's"))
		case 4:
			b = protowire.AppendTag(b, number, protowire.StartGroupType)
			b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 1)
			b = protowire.AppendTag(b, number, protowire.EndGroupType)
		}
	}
	return b
}

// A later client's request, of which this service does not know two hundred
// fields, is answered by every method as it would be without them.
func TestUnknownFieldsInEveryRequest(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{getVmInfo: echo}, Options{})
	c := rawConnect(t, bus)
	tested := 0
	for _, m := range ConciergeService(nil).Methods {
		if m.Request == nil {
			continue
		}
		tested++
		ask := func(payload []byte) string {
			t.Helper()
			o := infoCall(payload)
			o.member = m.Name
			r := c.roundTrip(o)
			if r.errorName != "" && r.errorName != errFailed {
				t.Fatalf("%s: %s", m.Name, r.errorName)
			}
			return r.errorName + string(r.bodyBytes())
		}
		if plain, strange := ask(nil), ask(unknownFields(200)); plain != strange {
			t.Errorf("%s answers %q, without unknown fields %q", m.Name, strange, plain)
		}
	}
	if tested < 10 {
		t.Errorf("only %d methods were tested", tested)
	}
}

// What the bus itself does not carry ends the caller's connection, and nobody
// else's.
func TestMessageThatTheBusDoesNotCarry(t *testing.T) {
	bus := dbustest.Lax(t, `<limit name="max_message_size">33554432</limit>`)
	serve(t, bus, &handler{getVmInfo: echo}, Options{})
	c := rawConnect(t, bus)
	other := bus.Connect(t)
	if _, err := c.transmitAny(infoCall(make([]byte, 33<<20))); err == nil {
		if m, err := c.r.next(); err == nil {
			t.Errorf("the bus says %+v", m)
		}
	}
	var resp conciergepb.GetVmInfoResponse
	if err := callProto(t, other, "GetVmInfo", &conciergepb.GetVmInfoRequest{}, &resp); err != nil {
		t.Error(err)
	}
}
