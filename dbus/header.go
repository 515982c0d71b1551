package dbus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Message types and flags (D-Bus specification, "Message Format").
const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4

	flagNoReply = 0x1
	// flagNoAutoStart keeps the bus from starting a service for a call.
	flagNoAutoStart = 0x2
	// flagInteractive is ALLOW_INTERACTIVE_AUTHORIZATION.
	flagInteractive = 0x4
)

// Header field codes.
const (
	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8
	fieldUnixFDs     = 9
)

// fieldTypes is the type that each header field must have.
var fieldTypes = [...]string{
	fieldPath: "o", fieldInterface: "s", fieldMember: "s", fieldErrorName: "s",
	fieldReplySerial: "u", fieldDestination: "s", fieldSender: "s",
	fieldSignature: "g", fieldUnixFDs: "u",
}

const (
	// maxMessage and maxArray are the specification's limits; a bus that
	// exceeds them has lost its framing.
	maxMessage = 128 << 20
	maxArray   = 64 << 20
	// maxString is how much of a string field is kept. Names end at 255 bytes
	// by the specification; a path may be longer, but none that we serve is,
	// and a path cut here equals none of them.
	maxString = 255
	// maxNesting bounds variants in variants in a field that we do not know.
	maxNesting = 32
)

var errMalformed = errors.New("malformed message")

// fixedHeader is what the first 16 bytes of a message say.
type fixedHeader struct {
	order         binary.ByteOrder
	typ, flags    byte
	serial        uint32
	fields, body  int // lengths in bytes
	total, offset int // length of the message; where its body begins
}

// parseFixed fails when the message's end cannot be known: the stream is then
// of no more use.
func parseFixed(b *[fixedLen]byte) (fixedHeader, error) {
	var f fixedHeader
	switch b[0] {
	case 'l':
		f.order = binary.LittleEndian
	case 'B':
		f.order = binary.BigEndian
	default:
		return f, fmt.Errorf("%w: byte order %q", errMalformed, b[0])
	}
	if b[3] != 1 {
		return f, fmt.Errorf("%w: protocol version %d", errMalformed, b[3])
	}
	f.typ, f.flags = b[1], b[2]
	body, fields := uint64(f.order.Uint32(b[4:])), uint64(f.order.Uint32(b[12:]))
	f.serial = f.order.Uint32(b[8:])
	offset := fixedLen + (fields+7)&^7
	if fields > maxArray || offset+body > maxMessage {
		return f, fmt.Errorf("%w: %d bytes", errMalformed, offset+body)
	}
	f.fields, f.body = int(fields), int(body)
	f.total, f.offset = int(offset+body), int(offset)
	return f, nil
}

// header holds the fields of a message's header that were present.
type header struct {
	path, iface, member, errorName, destination, sender, signature string
	replySerial, fds                                               uint32
}

// check refuses a header without the fields that a message of its type needs.
func (h *header) check(typ byte) error {
	ok := true
	switch typ {
	case typeCall:
		ok = h.path != "" && h.member != ""
	case typeReturn:
		ok = h.replySerial != 0
	case typeError:
		ok = h.replySerial != 0 && h.errorName != ""
	case typeSignal:
		ok = h.path != "" && h.iface != "" && h.member != ""
	}
	if !ok {
		return fmt.Errorf("%w: a required header field is missing", errMalformed)
	}
	return nil
}

// scanHeader reads the n bytes of header fields that begin 16 bytes into a
// message. On an error the header holds what was read until then.
func scanHeader(src source, order binary.ByteOrder, n int) (header, error) {
	s := scanner{src: src, order: order, left: n}
	var h header
	for s.left > 0 {
		if err := s.field(&h); err != nil {
			return h, fmt.Errorf("%w: header: %w", errMalformed, err)
		}
	}
	return h, nil
}

func (s *scanner) field(h *header) error {
	if err := s.align(8); err != nil {
		return err
	}
	code, err := s.byte()
	if err != nil {
		return err
	}
	sig, err := s.signature()
	if err != nil {
		return err
	}
	switch {
	case int(code) >= len(fieldTypes):
		// Fields of later versions must be accepted and ignored.
		return s.skipVariant(sig)
	case sig != fieldTypes[code] || code == 0:
		return fmt.Errorf("field %d has type %q", code, sig)
	case s.seen&(1<<code) != 0:
		return fmt.Errorf("field %d comes twice", code)
	}
	s.seen |= 1 << code
	switch code {
	case fieldPath:
		h.path, err = s.string()
	case fieldInterface:
		h.iface, err = s.string()
	case fieldMember:
		h.member, err = s.string()
	case fieldErrorName:
		h.errorName, err = s.string()
	case fieldReplySerial:
		h.replySerial, err = s.uint32()
	case fieldDestination:
		h.destination, err = s.string()
	case fieldSender:
		h.sender, err = s.string()
	case fieldSignature:
		h.signature, err = s.signature()
	case fieldUnixFDs:
		h.fds, err = s.uint32()
	}
	return err
}
