package dbus

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// maxSend is the longest body that is sent. The system bus ends a connection
// that sends a message of more than 32 MiB.
const maxSend = 16 << 20

// An outgoing message. Its descriptors stay the caller's.
type outgoing struct {
	typ, flags                                  byte
	path, iface, member, errorName, destination string
	replySerial                                 uint32
	body                                        body
}

// encode returns the message as it goes on the wire, little-endian.
func (o *outgoing) encode(serial uint32) []byte {
	b := make([]byte, fixedLen, 192+len(o.body.data))
	b[0], b[1], b[2], b[3] = 'l', o.typ, o.flags, 1
	binary.LittleEndian.PutUint32(b[4:], uint32(len(o.body.data)))
	binary.LittleEndian.PutUint32(b[8:], serial)
	b = appendString(b, fieldPath, 'o', o.path)
	b = appendString(b, fieldInterface, 's', o.iface)
	b = appendString(b, fieldMember, 's', o.member)
	b = appendString(b, fieldErrorName, 's', o.errorName)
	b = appendString(b, fieldDestination, 's', o.destination)
	b = appendUint32(b, fieldReplySerial, o.replySerial)
	b = appendUint32(b, fieldUnixFDs, uint32(len(o.body.fds)))
	if o.body.sig != "" {
		b = appendField(b, fieldSignature, 'g')
		b = append(b, byte(len(o.body.sig)))
		b = append(append(b, o.body.sig...), 0)
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-fixedLen))
	return append(pad(b, 8), o.body.data...)
}

func pad(b []byte, n int) []byte {
	for len(b)%n != 0 {
		b = append(b, 0)
	}
	return b
}

func appendField(b []byte, code, typ byte) []byte {
	return append(pad(b, 8), code, 1, typ, 0)
}

func appendString(b []byte, code, typ byte, s string) []byte {
	if s == "" {
		return b
	}
	b = appendField(b, code, typ)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(append(b, s...), 0)
}

func appendUint32(b []byte, code byte, v uint32) []byte {
	if v == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint32(appendField(b, code, 'u'), v)
}

// write sends a message and its descriptors, or fails within timeout. After a
// failure the connection is of no more use: part of the message may be gone.
func write(sock *net.UnixConn, raw []byte, fds []int, timeout time.Duration) error {
	if err := sock.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if len(fds) > 0 {
		// The descriptors go with the first byte.
		n, _, err := sock.WriteMsgUnix(raw, unix.UnixRights(fds...), nil)
		if err != nil {
			return fmt.Errorf("can't send to the bus: %w", err)
		}
		raw = raw[n:]
	}
	if len(raw) == 0 {
		return nil
	}
	if _, err := sock.Write(raw); err != nil {
		return fmt.Errorf("can't send to the bus: %w", err)
	}
	return nil
}
