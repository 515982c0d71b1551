package tap_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/auberge-vm/auberge/helper/tap"
)

// A guest is what a VM's kernel is at the other end of a TAP, made of bytes.
type guest struct {
	t       *testing.T
	spec    tap.Spec
	tap     *os.File
	gateway []byte // its hardware address
	packets chan []byte
	arps    chan netip.Addr // whose addresses the host has told
}

const (
	headerSize = 10 // of virtio, before each frame
	typeIPv4   = 0x0800
	typeARP    = 0x0806
	typeIPv6   = 0x86dd
	protoICMP  = 1
	protoUDP   = 17
)

// An adder makes networks.
type adder interface {
	Add(context.Context, tap.Spec) (*os.File, error)
}

var guestMAC = []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}

func newGuest(t *testing.T, n adder, s tap.Spec) *guest {
	t.Helper()
	f, err := n.Add(t.Context(), s)
	check(t, err)
	l, err := netlink.LinkByName(tap.Prefix + s.ID)
	check(t, err)
	g := &guest{t: t, spec: s, tap: f, gateway: l.Attrs().HardwareAddr, packets: make(chan []byte, 100), arps: make(chan netip.Addr, 100)}
	var wg sync.WaitGroup
	wg.Go(g.receive)
	t.Cleanup(func() { f.Close(); wg.Wait() })
	return g
}

// receive answers who asks for the guest's address, and keeps what is for it.
func (g *guest) receive() {
	b := make([]byte, 4096)
	for {
		n, err := g.tap.Read(b)
		if err != nil {
			return
		}
		frame := bytes.Clone(b[:n])
		if len(frame) < headerSize+14 {
			continue
		}
		payload := frame[headerSize+14:]
		switch binary.BigEndian.Uint16(frame[headerSize+12:]) {
		case typeIPv4:
			g.packets <- payload
		case typeARP:
			if len(payload) < 28 {
				continue
			}
			if payload[7] == 2 {
				g.arps <- netip.AddrFrom4([4]byte(payload[14:18]))
			} else if guest := g.spec.Guest.As4(); bytes.Equal(payload[24:28], guest[:]) {
				g.arp(2, g.spec.Guest, netip.AddrFrom4([4]byte(payload[14:18])))
			}
		}
	}
}

func (g *guest) frame(kind uint16, payload []byte) {
	b := make([]byte, headerSize, 2000)
	b = append(append(b, g.gateway...), guestMAC...)
	b = append(binary.BigEndian.AppendUint16(b, kind), payload...)
	if _, err := g.tap.Write(b); err != nil {
		g.t.Errorf("send a frame: %v", err)
	}
}

func (g *guest) arp(op byte, from, to netip.Addr) {
	b := []byte{0, 1, 8, 0, 6, 4, 0, op}
	b = append(append(b, guestMAC...), from.AsSlice()...)
	g.frame(typeARP, append(append(b, 0, 0, 0, 0, 0, 0), to.AsSlice()...))
}

func (g *guest) ip(proto byte, from, to netip.Addr, payload []byte) {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	g.frame(typeIPv4, append(b, payload...))
}

// send sends a UDP message from a port of the guest's.
func (g *guest) send(from netip.Addr, source uint16, to netip.AddrPort, message string) {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(message)))
	g.ip(protoUDP, from, to.Addr(), append(append(b, 0, 0), message...))
}

func (g *guest) ping(to netip.Addr) {
	b := []byte{8, 0, 0, 0, 0, 7, 0, 1}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	g.ip(protoICMP, g.spec.Guest, to, b)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// next waits for a packet that comes to the guest from an address and returns
// what is in it. What comes before it is returned too.
func (g *guest) next(proto byte, from netip.Addr) (payload []byte, before [][]byte) {
	g.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case p := <-g.packets:
			if p[9] == proto && netip.AddrFrom4([4]byte(p[12:16])) == from {
				return p[20:], before
			}
			before = append(before, p)
		case <-limit:
			g.t.Fatalf("no packet of protocol %d from %v", proto, from)
		}
	}
}

// asks sends a message to the world and returns the answer, and what else has
// come before.
func (g *guest) asks(w *world, source uint16, message string) (answer string, before [][]byte) {
	g.t.Helper()
	g.send(g.spec.Guest, source, netip.AddrPortFrom(worldAddr, w.port), message)
	p, before := g.next(protoUDP, worldAddr)
	return string(p[8:]), before
}
