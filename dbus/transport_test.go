package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// socketPair returns both ends of a connection.
func socketPair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func TestDescriptorsBelongToTheirMessage(t *testing.T) {
	near, far := socketPair(t)
	files := pipes(t, 3)
	o := infoCall([]byte("x"))
	with := func(n int) *outgoing {
		o := infoCall([]byte("x"))
		for _, f := range files[:n] {
			o.body.fds = append(o.body.fds, int(f.Fd()))
		}
		return o
	}
	r := newReader(near, 1<<16)
	for i, n := range []int{0, 2, 0, 3, 1, 0} {
		o = with(n)
		if err := write(far, o.encode(uint32(i+1)), o.body.fds, patience); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range []int{0, 2, 0, 3, 1, 0} {
		m, err := r.next()
		if err != nil || m.err != nil {
			t.Fatal(err, m)
		}
		if m.serial != uint32(i+1) || len(m.fds) != n {
			t.Errorf("message %d has %d descriptors, want %d", m.serial, len(m.fds), n)
		}
		m.closeFDs()
	}
}

func TestATableOfOpenFilesThatIsFull(t *testing.T) {
	near, far := socketPair(t)
	o := infoCall([]byte("x"))
	for _, f := range pipes(t, 5) {
		o.body.fds = append(o.body.fds, int(f.Fd()))
	}
	if err := write(far, o.encode(1), o.body.fds, patience); err != nil {
		t.Fatal(err)
	}
	next, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	tight := before
	tight.Cur = uint64(next) + 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
		t.Fatal(err)
	}
	m, err := newReader(near, 1<<16).next()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err != nil || !m.lost {
		t.Fatalf("%v, %+v", err, m)
	}
	m.closeFDs()
	var s session
	s.server = &Server{}
	if e := asCallError(s.acceptable(m), errFailed); e.name != errLimitsExceeded {
		t.Error(e)
	}
}

func TestNoDescriptorIsLeft(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{startVm: readAll, connectVsock: oneFile(t)}, Options{})
	c := bus.Connect(t)
	fds := unixFDs(pipes(t, 3))
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := open()
	for range 20 {
		for _, test := range []struct {
			iface, member string
			args          []any
		}{
			{ConciergeInterface, "StartVm", []any{[]byte{}, fds}},
			{ConciergeInterface, "StartVm", []any{[]byte{}, fds[0]}},
			{ConciergeInterface, "StartVm", []any{[]byte{0xff}, fds}},
			{ConciergeInterface, "GetVmInfo", []any{[]byte{}, fds}},
			{ConciergeInterface, "NoSuchMethod", []any{[]byte{}, fds}},
			{propertiesName, "Set", []any{fds}},
			{Concierge1Name, "ConnectVsock", []any{"vm", "", uint32(1), fds}},
		} {
			invoke(t, c, test.iface, test.member, test.args...)
		}
		results, err := invoke(t, c, Concierge1Name, "ConnectVsock", "vm", "", uint32(1))
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(int(results[0].(dbus.UnixFD)))
	}
	big := rawConnect(t, bus)
	o := infoCall(make([]byte, 5<<20))
	o.body.fds = []int{int(fds[0])}
	serial, err := big.transmitAny(o)
	if err != nil {
		t.Fatal(err)
	}
	if m := big.awaitReply(serial); m.errorName != errLimitsExceeded {
		t.Error(m.errorName)
	}
	big.sock.Close()
	if after := open(); after != before {
		t.Errorf("%d descriptors were open before, %d are now", before, after)
	}
}

func TestBigEndianCallersAreServed(t *testing.T) {
	bus := dbustest.Lax(t)
	serve(t, bus, &handler{getVmInfo: echo}, Options{})
	c := rawConnect(t, bus)
	msg := dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(ConciergeName),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(ConciergePath)),
			dbus.FieldInterface:   dbus.MakeVariant(ConciergeInterface),
			dbus.FieldMember:      dbus.MakeVariant("GetVmInfo"),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.ParseSignatureMust("ay")),
		},
		Body: []any{[]byte{0x0a, 2, 'v', 'm'}},
	}
	var raw bytes.Buffer
	if err := msg.EncodeTo(&raw, binary.BigEndian); err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(raw.Bytes()[8:], 77)
	c.sendRaw(raw.Bytes())
	if m := c.awaitReply(77); m.typ != typeReturn || !bytes.Contains(m.bodyBytes(), []byte("vm")) {
		t.Errorf("%+v", m)
	}
}

func TestAWriteThatBlocksEndsTheLink(t *testing.T) {
	near, _ := socketPair(t)
	l := newLink(near, 50*time.Millisecond)
	o := infoCall(make([]byte, 1<<20))
	var err error
	for range 100 { // more than any socket's buffer
		if err = l.send(o); err != nil {
			break
		}
	}
	if !errors.Is(err, errClosed) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if err := l.send(infoCall(nil)); !errors.Is(err, errClosed) {
		t.Error("the link is still used:", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error("the socket is still open:", err)
	}
}

func TestAnswersOfOthersAreIgnored(t *testing.T) {
	near, far := socketPair(t)
	l := newLink(near, patience)
	go func() {
		r := newReader(far, 1<<16)
		m, err := r.next()
		if err != nil {
			t.Error(err)
			return
		}
		for _, sender := range []string{":1.9", driverName} {
			b, _ := plainBody(sender)
			o := &outgoing{typ: typeReturn, replySerial: m.serial, body: b}
			raw := withSender(o, sender) // as the bus hands it on
			if err := write(far, raw, nil, patience); err != nil {
				t.Error(err)
			}
		}
	}()
	go func() {
		r := newReader(near, 1<<16)
		for {
			m, err := r.next()
			if err != nil {
				l.close()
				return
			}
			l.answer(m)
		}
	}()
	var got string
	if err := l.driver(t.Context(), "GetId", nil, &got); err != nil || got != driverName {
		t.Error(got, err)
	}
	far.Close()
	if err := l.driver(t.Context(), "GetId", nil, &got); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// withSender encodes o as the bus would hand it on.
func withSender(o *outgoing, sender string) []byte {
	raw := o.encode(1)
	body := raw[len(raw)-len(o.body.data):]
	fields := raw[:fixedLen+int(binary.LittleEndian.Uint32(raw[12:]))]
	fields = appendString(append([]byte{}, fields...), fieldSender, 's', sender)
	binary.LittleEndian.PutUint32(fields[12:], uint32(len(fields)-fixedLen))
	return append(pad(fields, 8), body...)
}

func TestAddresses(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	for _, test := range []struct{ where, want string }{
		{"system", "/var/run/dbus/system_bus_socket"},
		{"session", "/run/user/1/bus"},
		{"unix:path=/a%20b,guid=00", "/a b"},
		{"unix:guid=00,abstract=/tmp/x", "@/tmp/x"},
		{"unix:path=/a;unix:path=/b", "/a /b"},
	} {
		list, err := busAddresses(test.where)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, address := range list {
			name, err := socketName(address)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		if diff := cmp.Diff(test.want, strings.Join(names, " ")); diff != "" {
			t.Errorf("%s: %s", test.where, diff)
		}
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/elsewhere")
	if list, _ := busAddresses("system"); len(list) != 1 || list[0] != "unix:path=/elsewhere" {
		t.Error(list)
	}
}

func TestAuthenticationFails(t *testing.T) {
	for _, test := range []struct{ name, answer, want string }{
		{"refused", "REJECTED EXTERNAL\r\n", "REJECTED"},
		{"no descriptors", "OK 00\r\nERROR\r\n", "AGREE_UNIX_FD"},
		{"no end", strings.Repeat("x", 2000), "no D-Bus line"},
		{"hung up", "", "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := socketPair(t)
			if _, err := io.WriteString(far, test.answer); err != nil {
				t.Fatal(err)
			}
			far.CloseWrite()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := authenticate(ctx, near); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		near, far := socketPair(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			far.Read(make([]byte, 1)) // it has begun
			cancel()
		}()
		if err := authenticate(ctx, near); err == nil {
			t.Error("authenticated with nobody")
		}
	})
}
