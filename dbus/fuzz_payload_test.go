package dbus

import (
	"errors"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
)

// FuzzPayload: each method of both daemons' tables reads a payload to its end or refuses
// it; what it has read is its own message without a stranger's fields, and it
// can say no to it. The handlers themselves are fed in daemon/.
func FuzzPayload(f *testing.F) {
	for _, b := range [][]byte{nil, {0x0a, 1, 'x', 0x12, 3, '1', '2', '3'}, unknownFields(200), {0xff}, {0x0a, 0x7f}, {0x0b, 0x0b, 0x0b}} {
		f.Add(b, "no")
	}
	methods := append(ConciergeService(nil).Methods, CiceroneService(nil).Methods...)
	f.Fuzz(func(t *testing.T, payload []byte, reason string) {
		for _, m := range methods {
			e := protoEndpoint{m}
			if m.Request != nil {
				req, err := parseRequest(m.Request, payload)
				if err != nil {
					continue
				}
				if len(req.ProtoReflect().GetUnknown()) > 0 {
					t.Errorf("%s keeps unknown fields", m.Name)
				}
				ownerWord(req)
				if r := m.ResponseFor(req); r != nil {
					if b, err := proto.Marshal(r); err != nil || len(b) > 0 {
						t.Errorf("%s: the prototype of its answer is not empty: %v", m.Name, r)
					}
				}
			}
			b, err := e.failure(errors.New(reason))
			var ce *callError
			if err == nil && len(b.data) > 2*maxErrorText+1024 || errors.As(err, &ce) && !utf8.ValidString(callerText(ce.text)) {
				t.Errorf("%s refuses with %d bytes, %v", m.Name, len(b.data), err)
			}
		}
	})
}
