package dbus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// FuzzHeader: whatever the header fields are, reading them ends, and ends in
// the same way from memory and from a stream.
func FuzzHeader(f *testing.F) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		big := order == binary.ByteOrder(binary.BigEndian)
		f.Add(big, encoded(f, order, nil))
		f.Add(big, encoded(f, order, map[byte]any{200: map[string]dbus.Variant{"a": dbus.MakeVariant([]string{"x"})}}))
		f.Add(big, encoded(f, order, map[byte]any{200: struct{ A, B any }{uint64(1), dbus.MakeVariant("x")}}))
	}
	f.Add(false, append([]byte{200, 1, 'v', 0}, bytes.Repeat([]byte{1, 'v', 0}, 50)...))
	f.Fuzz(func(t *testing.T, big bool, b []byte) {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		one, oneErr := scanHeader(&memory{b}, order, len(b))
		two, twoErr := scanHeader(stream{bufio.NewReader(bytes.NewReader(b))}, order, len(b))
		if (oneErr == nil) != (twoErr == nil) || one != two {
			t.Fatalf("%+v %v, %+v %v", one, oneErr, two, twoErr)
		}
	})
}

// FuzzFixedHeader: a message's length is known, and within bounds, or refused.
func FuzzFixedHeader(f *testing.F) {
	f.Add(infoCall([]byte("x")).encode(1)[:fixedLen])
	f.Add([]byte("B\x01\x00\x01\xff\xff\xff\xff\x00\x00\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fixedLen {
			return
		}
		h, err := parseFixed((*[fixedLen]byte)(b))
		if err == nil && (h.offset < fixedLen || h.offset%8 != 0 || h.total < h.offset || h.total > maxMessage) {
			t.Fatalf("%+v", h)
		}
	})
}

// FuzzCall: whatever the arguments are, every reader of arguments ends, hands
// out no bytes but the message's own and no descriptor twice.
func FuzzCall(f *testing.F) {
	add := func(sig string, nfds byte, values ...any) {
		b, err := plainBody(values...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig, b.data, nfds, false)
	}
	request := []byte{0x0a, 2, 'v', 'm', 0x12, 1, 'x'}
	add("ay", 0, request)
	add("ayh", 1, request, dbus.UnixFDIndex(0))
	add("ayah", 2, request, []dbus.UnixFDIndex{1, 0})
	add("ss", 0, "a", "b")
	add("sssh", 2, "vm", "", "penguin", dbus.UnixFDIndex(1))
	add("ssu", 0, "vm", "", uint32(1))
	add("ssa{sv}", 0, "vm", "", map[string]dbus.Variant{"memory": dbus.MakeVariant(uint64(1)), "network": dbus.MakeVariant("none")})
	add("ssa{sv}", 0, "vm", "", map[string]dbus.Variant{"follow": dbus.MakeVariant(true), "lines": dbus.MakeVariant(uint32(5))})
	// godbus's decoder never returns from this one.
	f.Add("ssa{sv}", []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x18\x00\x00\x00\x01\x00\x00\x00x\x00\x03a()\x00\x00\x00\x00\x00\x08\x00\x00\x00"), byte(0), false)
	tables := [][]Arg{{}, {{"a", "s"}}, {{"a", "s"}, {"b", "s"}}}
	for _, m := range Concierge1Interface(nil).Methods {
		tables = append(tables, m.In)
	}
	for _, m := range Cicerone1Interface(nil).Methods {
		tables = append(tables, m.In)
	}
	f.Fuzz(func(t *testing.T, sig string, b []byte, nfds byte, big bool) {
		m := &message{raw: b, fds: make([]int, nfds)}
		m.signature = sig
		m.order = binary.LittleEndian
		if big {
			m.order = binary.BigEndian
		}
		for i := range m.fds {
			m.fds[i] = -1
		}
		for _, in := range tables {
			if args, err := readArgs(m, in); err == nil {
				for _, arg := range args {
					if d, ok := arg.(map[string]any); ok {
						readSettings(d)
						readLogOptions(d)
					}
					if i, ok := arg.(fdIndex); ok && int(i) >= int(nfds) {
						t.Fatalf("descriptor %d of %d", i, nfds)
					}
				}
			}
		}
		p, err := readPayload(m, DescriptorsMayFollow)
		if err != nil {
			return
		}
		if len(p.data) > len(b) || len(p.fds) > int(nfds) {
			t.Fatalf("%+v", p)
		}
		if req, err := parseRequest(new(conciergepb.StartVmRequest), p.data); err == nil {
			ownerWord(req)
		}
	})
}

// FuzzStream: whatever arrives, the reader never takes bytes beyond a message
// and never keeps more than it may.
func FuzzStream(f *testing.F) {
	call := infoCall([]byte("x")).encode(1)
	f.Add(append(append([]byte{}, call...), call...))
	f.Add(infoCall(make([]byte, 5000)).encode(1))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytes.NewReader(b)
		for {
			var r reader
			r.limit = 4096
			if _, err := io.ReadFull(src, r.fixed[:]); err != nil {
				return
			}
			h, err := parseFixed(&r.fixed)
			if err != nil {
				return
			}
			m := &message{fixedHeader: h}
			r.rest = src
			before := src.Len()
			if err := r.readRest(m); err != nil {
				return
			}
			if before-src.Len() != h.total-fixedLen || len(m.raw) > r.limit {
				t.Fatalf("%d bytes of %d were read", before-src.Len(), h.total-fixedLen)
			}
		}
	})
}
