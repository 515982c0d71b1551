package dbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

// bodyReader reads a message's body. Its first failure sticks, so that callers
// read everything and ask end once.
//
// Not every bus checks bodies (dbus-broker relays them as they are), and
// godbus's decoder never returns from a variant of type a(), so what callers
// send is read here.
type bodyReader struct {
	order binary.ByteOrder
	b     []byte
	pos   int
	err   error
}

func (r *bodyReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// take returns the next n bytes after padding to a multiple of align.
func (r *bodyReader) take(n uint32, align int) []byte {
	pad := -r.pos & (align - 1)
	if r.err == nil && uint64(len(r.b)-r.pos) < uint64(pad)+uint64(n) {
		r.fail(io.ErrUnexpectedEOF)
	}
	if r.err != nil {
		return nil
	}
	for _, c := range r.b[r.pos : r.pos+pad] {
		if c != 0 {
			r.fail(errors.New("padding is not zero"))
		}
	}
	from := r.pos + pad
	r.pos = from + int(n)
	return r.b[from:r.pos:r.pos]
}

func (r *bodyReader) uint32() uint32 {
	if b := r.take(4, 4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *bodyReader) bool() bool {
	n := r.uint32()
	if n > 1 {
		r.fail(fmt.Errorf("a boolean is %d", n))
	}
	return n == 1
}

func (r *bodyReader) uint64() uint64 {
	if b := r.take(8, 8); b != nil {
		return r.order.Uint64(b)
	}
	return 0
}

// bytes reads an ay without copying it.
func (r *bodyReader) bytes() []byte {
	return r.take(r.uint32(), 1)
}

func (r *bodyReader) string() string {
	n := r.uint32()
	if n > maxArray {
		r.fail(fmt.Errorf("a string of %d bytes", n))
	}
	return r.text(r.take(n, 1))
}

func (r *bodyReader) signature() string {
	n := r.take(1, 1)
	if n == nil {
		return ""
	}
	return r.text(r.take(uint32(n[0]), 1))
}

// text ends a string: no NUL inside, one behind it.
func (r *bodyReader) text(b []byte) string {
	end := r.take(1, 1)
	if r.err != nil {
		return ""
	}
	if end[0] != 0 || bytes.IndexByte(b, 0) >= 0 || !utf8.Valid(b) {
		r.fail(errors.New("a string is not UTF-8 with a NUL at its end"))
		return ""
	}
	return string(b)
}

// dict reads an a{sv} whose values are of the types b, s, u and t, into bool,
// string, uint32 and uint64. Settings need no other types, and a key comes only once.
func (r *bodyReader) dict() map[string]any {
	n := r.uint32()
	r.take(0, 8)
	end := uint64(r.pos) + uint64(n)
	d := map[string]any{}
	for r.err == nil && uint64(r.pos) < end {
		r.take(0, 8)
		key := r.string()
		var value any
		switch sig := r.signature(); sig {
		case "s":
			value = r.string()
		case "u":
			value = r.uint32()
		case "b":
			value = r.bool()
		case "t":
			value = r.uint64()
		default:
			r.fail(fmt.Errorf("%q has the type %q", key, sig))
		}
		if _, twice := d[key]; twice {
			r.fail(fmt.Errorf("%q comes twice", key))
		}
		d[key] = value
	}
	if uint64(r.pos) != end {
		r.fail(errors.New("a dictionary does not end where it says"))
	}
	return d
}

// end says whether the body held what was read and nothing else.
func (r *bodyReader) end() error {
	if r.err == nil && r.pos != len(r.b) {
		r.fail(fmt.Errorf("%d bytes too many", len(r.b)-r.pos))
	}
	return r.err
}

// A payload is what a call of a method with protobuf arguments carries.
type payload struct {
	data []byte
	// fds are indexes of the message's descriptors, each at most once.
	fds []uint32
}

// readPayload reads the arguments of m, which must have one of the shapes that
// use allows.
func readPayload(m *message, use DescriptorUse) (payload, error) {
	r := bodyReader{order: m.order, b: m.bodyBytes()}
	var p payload
	switch sig := m.signature; {
	case sig == "ay":
		p.data = r.bytes()
	case sig == "ayh" && use == DescriptorsMayFollow:
		p.data = r.bytes()
		p.fds = []uint32{r.uint32()}
	case sig == "ayah" && use == DescriptorsMayFollow:
		p.data = r.bytes()
		p.fds = r.indexes(len(m.fds))
	default:
		return p, fmt.Errorf("the arguments have the type %q, not %s", sig, use.shapes())
	}
	if err := r.end(); err != nil {
		return p, err
	}
	return p, checkIndexes(p.fds, len(m.fds))
}

// indexes reads an ah of at most n descriptors.
func (r *bodyReader) indexes(n int) []uint32 {
	size := r.uint32()
	if size%4 != 0 || size/4 > uint32(n) {
		r.fail(fmt.Errorf("an array of %d bytes for %d descriptors", size, n))
		return nil
	}
	list := make([]uint32, size/4)
	for i := range list {
		list[i] = r.uint32()
	}
	return list
}

// checkIndexes refuses descriptors that did not come or are named twice.
func checkIndexes(list []uint32, n int) error {
	var seen [scmMaxFD]bool
	for _, i := range list {
		if int64(i) >= int64(n) || i >= scmMaxFD || seen[i] {
			return fmt.Errorf("descriptor %d did not come along, or is named twice", i)
		}
		seen[i] = true
	}
	return nil
}

// A body is what an outgoing message carries. It owns its descriptors.
type body struct {
	sig  string
	data []byte
	fds  []int
}

// payloadBody frames one serialized protobuf as ay.
func payloadBody(data []byte) body {
	b := make([]byte, 4, 4+len(data))
	binary.LittleEndian.PutUint32(b, uint32(len(data)))
	return body{sig: "ay", data: append(b, data...)}
}

// plainBody encodes plain D-Bus values, dbus.UnixFD among them.
func plainBody(values ...any) (body, error) {
	if len(values) == 0 {
		return body{}, nil
	}
	// godbus encodes whole messages only; the header is cut off again.
	sig := dbus.SignatureOf(values...)
	msg := dbus.Message{
		Type: dbus.TypeMethodReply,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(uint32(1)),
			dbus.FieldSignature:   dbus.MakeVariant(sig),
		},
		Body: values,
	}
	var buf bytes.Buffer
	fds, err := msg.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		return body{}, err
	}
	raw := buf.Bytes()
	n := binary.LittleEndian.Uint32(raw[4:])
	return body{sig: sig.String(), data: raw[len(raw)-int(n):], fds: fds}, nil
}
