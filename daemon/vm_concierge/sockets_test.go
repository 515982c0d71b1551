package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket stands for the service manager.
func notifySocket(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

// A socket goes to the service manager under its name.
func TestSocketIsStored(t *testing.T) {
	manager := notifySocket(t)
	s := &socketStore{log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("stored"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s.tell("FDSTORE=1\nFDNAME=vsock-7777", f)
	f.Close()
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := manager.ReadMsgUnix(b, oob)
	if err != nil || string(b[:n]) != "FDSTORE=1\nFDNAME=vsock-7777" {
		t.Fatalf("told %q, %v", b[:max(n, 0)], err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%v, %v", msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	defer unix.Close(fds[0])
	if n, err := unix.Read(fds[0], b); err != nil || string(b[:n]) != "stored" {
		t.Errorf("stored %q, %v", b[:n], err)
	}
}

// The next run gets what was stored, once.
func TestStoredSocketIsTaken(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &socketStore{log: slog.New(slog.DiscardHandler), passed: map[string]*os.File{"vsock-7777": f}}
	if got, err := s.socket(7777); err != nil || got != f {
		t.Errorf("%v, %v", got, err)
	}
	if len(s.passed) != 0 {
		t.Error("it would be given twice")
	}
}
