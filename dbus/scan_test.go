package dbus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// fieldsOf cuts the header fields out of a message.
func fieldsOf(raw []byte) []byte {
	order := binary.ByteOrder(binary.LittleEndian)
	if raw[0] == 'B' {
		order = binary.BigEndian
	}
	return raw[fixedLen : fixedLen+order.Uint32(raw[12:])]
}

// encoded is what godbus makes of a call with the given header fields, those
// that we know by name and others by number.
func encoded(t testing.TB, order binary.ByteOrder, more map[byte]any) []byte {
	t.Helper()
	msg := dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/a/b")),
			dbus.FieldInterface:   dbus.MakeVariant("a.b"),
			dbus.FieldMember:      dbus.MakeVariant("C"),
			dbus.FieldDestination: dbus.MakeVariant("d.e"),
			dbus.FieldSender:      dbus.MakeVariant(":1.2"),
			dbus.FieldReplySerial: dbus.MakeVariant(uint32(7)),
			dbus.FieldUnixFDs:     dbus.MakeVariant(uint32(3)),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.ParseSignatureMust("ayah")),
		},
	}
	var raw bytes.Buffer
	if err := msg.EncodeTo(&raw, order); err != nil {
		t.Fatal(err)
	}
	b := fieldsOf(raw.Bytes())
	// godbus refuses fields that it does not know: they are encoded as a body,
	// which is aligned as the header is.
	for code, value := range more {
		b = append(pad(b, 8), code)
		msg := dbus.Message{
			Type: dbus.TypeMethodReply,
			Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldReplySerial: dbus.MakeVariant(uint32(1)),
				dbus.FieldSignature:   dbus.MakeVariant(dbus.ParseSignatureMust("yv")),
			},
			Body: []any{code, dbus.MakeVariant(value)},
		}
		var raw bytes.Buffer
		if err := msg.EncodeTo(&raw, order); err != nil {
			t.Fatal(err)
		}
		n := order.Uint32(raw.Bytes()[4:])
		b = append(b, raw.Bytes()[raw.Len()-int(n)+1:]...)
	}
	return b
}

func TestHeadersAreRead(t *testing.T) {
	want := header{
		path: "/a/b", iface: "a.b", member: "C", destination: "d.e", sender: ":1.2",
		signature: "ayah", replySerial: 7, fds: 3,
	}
	nested := dbus.MakeVariant("deep")
	for range 20 {
		nested = dbus.MakeVariant(nested)
	}
	type pair struct {
		A uint64
		B []string
	}
	for _, test := range []struct {
		name string
		more map[byte]any
	}{
		{"fields that we know", nil},
		{"unknown fields of basic types", map[byte]any{10: byte(1), 11: uint16(2), 12: true, 13: "x", 14: 1.5, 255: dbus.ObjectPath("/x")}},
		{"an unknown field of structs", map[byte]any{200: []pair{{1, []string{"a"}}, {2, nil}}}},
		{"an unknown field that is a struct", map[byte]any{200: pair{1, []string{"a"}}, 201: byte(1)}},
		{"an unknown field that is a dictionary", map[byte]any{200: map[string]dbus.Variant{"a": nested}, 201: "after"}},
		{"an unknown field of variants in variants", map[byte]any{200: nested, 201: "after"}},
		{"an unknown field that is a signature", map[byte]any{200: dbus.ParseSignatureMust("a{sv}")}},
	} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			t.Run(test.name+" "+order.String(), func(t *testing.T) {
				b := encoded(t, order, test.more)
				got, err := scanHeader(&memory{b}, order, len(b))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(header{})); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestMalformedHeadersAreRefused(t *testing.T) {
	le := binary.LittleEndian
	good := encoded(t, le, nil)
	field := func(code byte, sig string, value ...byte) []byte {
		b := append([]byte{code, byte(len(sig))}, sig...)
		return append(append(b, 0), value...)
	}
	for _, test := range []struct {
		name string
		b    []byte
	}{
		{"a field number 0", field(0, "s", 0, 0, 0, 0, 0)},
		{"a path that is a string", field(fieldPath, "s", 1, 0, 0, 0, '/', 0)},
		{"a field twice", append(pad(append([]byte{}, good...), 8), field(fieldReplySerial, "u", 1, 0, 0, 0)...)},
		{"a string longer than the header", field(fieldMember, "s", 200, 0, 0, 0, 'x', 0)},
		{"a string longer than any", field(fieldMember, "s", 0xff, 0xff, 0xff, 0xff, 'x', 0)},
		{"a variant without a type", field(200, "")},
		{"a variant of two types", field(200, "uu", 0, 0, 0, 0, 0, 0, 0, 0)},
		{"an array without a type", field(200, "a", 0, 0, 0, 0)},
		{"an array of nothing in a struct", field(200, "(a)", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)},
		{"a struct that does not end", field(200, "(u", 0, 0, 0, 0)},
		{"a struct that does not begin", field(200, ")")},
		{"a dictionary entry outside a dictionary", field(200, "{su}", 0, 0, 0, 0)},
		{"an unknown type", field(200, "z", 0)},
		{"an endless tower of variants", append(field(200, "v"), bytes.Repeat([]byte{1, 'v', 0}, 100)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if h, err := scanHeader(&memory{test.b}, le, len(test.b)); !errors.Is(err, errMalformed) {
				t.Errorf("%+v, %v", h, err)
			}
		})
	}
	t.Run("every header that is cut off", func(t *testing.T) {
		good := append(pad(append([]byte{}, good...), 8), field(fieldErrorName, "s", 1, 0, 0, 0, 'x', 0)...)
		whole := 0
		for n := range good {
			if _, err := scanHeader(&memory{good}, le, n); err == nil {
				whole++ // the cut was between two fields
			}
		}
		if whole > 20 {
			t.Errorf("%d of %d cuts went unnoticed", whole, len(good))
		}
	})
}

func TestLongStringsAreCut(t *testing.T) {
	b := appendString(nil, fieldPath, 'o', "/"+strings.Repeat("a", 1<<20))
	b = appendString(b, fieldSender, 's', ":1.2")
	h, err := scanHeader(stream{bufio.NewReaderSize(bytes.NewReader(b), discardChunk)}, binary.LittleEndian, len(b))
	if err != nil || len(h.path) != maxString || h.sender != ":1.2" {
		t.Error(len(h.path), h.sender, err)
	}
}
