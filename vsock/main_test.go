package vsock_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

// fakeBackend listens as a vsock backend would, and serves each connection
// with a function, after reading the CONNECT line.
func fakeBackend(t *testing.T, serve func(line string, c net.Conn)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "vm.vsock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(readLine(c), c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

// readLine reads byte by byte, up to the newline and no further.
func readLine(c net.Conn) string {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 100 {
		if n, _ := c.Read(b); n == 0 {
			break
		}
		line = append(line, b[0])
		if b[0] == '\n' {
			break
		}
	}
	return string(line)
}

// socketPair returns two connected Unix sockets.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}
