package vmm_test

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
)

// packetPair returns two ends of a control connection.
func packetPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// descriptors counts this process's open files.
func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func openNull(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPackets(t *testing.T) {
	a, b := packetPair(t)
	path := filepath.Join(t.TempDir(), "file")
	var files []*os.File
	for _, text := range []string{"one", "two"} {
		if err := os.WriteFile(path+text, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path + text)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	sent := vmm.Request{Op: vmm.OpLaunch, Spec: spec(), Reason: "ü\x00\"<>"}
	if err := vmm.SendPacket(a, sent, files); err != nil {
		t.Fatal(err)
	}
	var got vmm.Request
	received, err := vmm.ReceivePacket(b, &got)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(sent)
	if have, _ := json.Marshal(got); string(have) != string(want) {
		t.Errorf("received %s, want %s", have, want)
	}
	if len(received) != 2 {
		t.Fatalf("%d files", len(received))
	}
	for i, text := range []string{"one", "two"} {
		defer received[i].Close()
		if b, err := io.ReadAll(received[i]); err != nil || string(b) != text {
			t.Errorf("file %d: %q, %v", i, b, err)
		}
		if flags, err := unix.FcntlInt(received[i].Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("file %d would reach every child", i)
		}
	}
}

// What is too much is refused before it is sent.
func TestPacketsAreBounded(t *testing.T) {
	a, b := packetPair(t)
	if err := vmm.SendPacket(a, vmm.Request{Reason: strings.Repeat("x", vmm.MaxPacket)}, nil); err == nil {
		t.Error("a packet too long was sent")
	}
	null := openNull(t)
	var many []*os.File
	for range vmm.MaxFiles + 1 {
		many = append(many, null)
	}
	if err := vmm.SendPacket(a, vmm.Request{}, many); err == nil {
		t.Error("too many descriptors were sent")
	}
	// The most that there can be gets through.
	if err := vmm.SendPacket(a, vmm.Request{Reason: strings.Repeat("x", vmm.MaxPacket-100)}, many[1:]); err != nil {
		t.Fatal(err)
	}
	var r vmm.Request
	files, err := vmm.ReceivePacket(b, &r)
	if err != nil || len(files) != vmm.MaxFiles || len(r.Reason) != vmm.MaxPacket-100 {
		t.Errorf("%d files, %d bytes, %v", len(files), len(r.Reason), err)
	}
	for _, f := range files {
		f.Close()
	}
	closed := openNull(t)
	closed.Close()
	if err := vmm.SendPacket(a, vmm.Request{}, []*os.File{closed}); err == nil {
		t.Error("a closed file was sent")
	}
}

// A peer can send anything. It is refused, and no descriptor stays.
func TestBadPackets(t *testing.T) {
	null := openNull(t)
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		return unix.UnixRights(fds...)
	}
	for name, test := range map[string]struct {
		data string
		oob  []byte
		end  bool // it looks like the end of the connection
	}{
		"no JSON":                           {data: "hello", oob: rights(3)},
		"half of it":                        {data: `{"op":"launch`, oob: rights(1)},
		"an array":                          {data: `[]`, oob: rights(1)},
		"an operation that is a number":     {data: `{"op":7}`},
		"a spec that is none":               {data: `{"op":"launch","spec":{"cpus":"many"}}`, oob: rights(2)},
		"two objects":                       {data: `{}{}`, oob: rights(1)},
		"a packet too long":                 {data: `{"reason":"` + strings.Repeat("x", vmm.MaxPacket) + `"}`, oob: rights(1)},
		"too many descriptors":              {data: `{}`, oob: rights(vmm.MaxFiles + 10)},
		"an empty packet with descriptors":  {oob: rights(5), end: true},
		"an empty packet":                   {end: true},
		"an empty packet with far too many": {oob: rights(200), end: true},
	} {
		a, b := packetPair(t)
		before := descriptors(t)
		send(t, a, test.data, test.oob)
		var r vmm.Request
		files, err := vmm.ReceivePacket(b, &r)
		if err == nil || files != nil || errors.Is(err, io.EOF) != test.end {
			t.Errorf("%s: %v, %v", name, files, err)
		}
		if after := descriptors(t); after > before {
			t.Errorf("%s: %d descriptors before, %d after", name, before, after)
		}
	}
	a, b := packetPair(t)
	a.Close()
	if _, err := vmm.ReceivePacket(b, &vmm.Request{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// send sends bytes and control data as they are; net and x/sys put a byte in
// an empty packet.
func send(t testing.TB, c *net.UnixConn, data string, oob []byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var msg unix.Msghdr
	var iov unix.Iovec
	if data != "" {
		iov.Base = unsafe.StringData(data)
		iov.SetLen(len(data))
		msg.Iov = &iov
		msg.SetIovlen(1)
	}
	if len(oob) > 0 {
		msg.Control = &oob[0]
		msg.SetControllen(len(oob))
	}
	var errno unix.Errno
	raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), 0)
	})
	if errno != 0 {
		t.Fatal(errno)
	}
}

// FuzzRequest feeds a supervisor's socket. What is taken for a spec and passes
// its check has every file that it names.
func FuzzRequest(f *testing.F) {
	good, _ := json.Marshal(vmm.Request{Op: vmm.OpLaunch, Spec: spec()})
	for _, s := range []string{string(good), "{}", "[]", "null", `{"spec":null}`, `{"op":"launch","spec":{}}`,
		`{"spec":{"network":{"subnet":"x"}}}`, `{"spec":{"disks":[{"file":9223372036854775807}]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > vmm.MaxPacket {
			return
		}
		a, b := packetPair(t)
		defer a.Close()
		defer b.Close()
		send(t, a, string(data), nil)
		var r vmm.Request
		if _, err := vmm.ReceivePacket(b, &r); err != nil || r.Spec == nil {
			return
		}
		const files = 3
		if r.Spec.Check(files) != nil {
			return
		}
		for _, n := range append([]vmm.File{r.Spec.Kernel}, fileOf(r.Spec.Disks)...) {
			if n < 0 || n >= files {
				t.Errorf("accepted file %d of %d", n, files)
			}
		}
	})
}

func fileOf(disks []vmm.Disk) (files []vmm.File) {
	for _, d := range disks {
		files = append(files, d.File)
	}
	return files
}
