package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
)

// A rawClient calls methods and leaves the answers undecoded: godbus takes
// byte after byte of an array, which for a long answer is most of a call.
type rawClient struct {
	conn   net.Conn
	r      *bufio.Reader
	serial uint32
}

// dialRaw connects to the bus as a user of it.
func (b *bench) dialRaw() (*rawClient, error) {
	conn, err := b.DialSocket(b.user)
	if err != nil {
		return nil, err
	}
	c := &rawClient{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if err := c.greet(b.user.UID); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet the bus: %w", err)
	}
	return c, nil
}

func (c *rawClient) greet(uid uint32) error {
	id := hex.EncodeToString([]byte(strconv.FormatUint(uint64(uid), 10)))
	if _, err := fmt.Fprintf(c.conn, "\x00AUTH EXTERNAL %s\r\n", id); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "OK ") {
		return fmt.Errorf("the bus says %q: %w", line, err)
	}
	if _, err := io.WriteString(c.conn, "BEGIN\r\n"); err != nil {
		return err
	}
	_, err = c.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	return err
}

// call sends a method call and returns the length of the answer's body.
func (c *rawClient) call(destination, path, iface, member string, args ...any) (int, error) {
	c.serial++
	m := &godbus.Message{
		Type: godbus.TypeMethodCall,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(destination),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(path)),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
		},
		Body: args,
	}
	if len(args) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return 0, err
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], c.serial)
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		return 0, err
	}
	for {
		kind, body, err := c.skip()
		switch {
		case err != nil:
			return 0, err
		case kind == godbus.TypeMethodReply:
			return body, nil
		case kind == godbus.TypeError:
			return 0, errors.New(member + ": the answer is an error")
		}
	}
}

// skip reads a message and keeps nothing of it.
func (c *rawClient) skip() (kind godbus.Type, body int, err error) {
	var fixed [16]byte
	if _, err := io.ReadFull(c.r, fixed[:]); err != nil {
		return 0, 0, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if fixed[0] == 'B' {
		order = binary.BigEndian
	}
	body = int(order.Uint32(fixed[4:]))
	fields := (int(order.Uint32(fixed[12:])) + 7) &^ 7
	_, err = c.r.Discard(fields + body)
	return godbus.Type(fixed[1]), body, err
}

// concierge calls a method of the contract.
func (c *rawClient) concierge(method string, req proto.Message) (int, error) {
	payload, err := proto.Marshal(req)
	if err != nil {
		return 0, err
	}
	return c.call(dbus.ConciergeName, dbus.ConciergePath, dbus.ConciergeInterface, method, payload)
}
