package sftp

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server of the script that stands for sftp-server: what matters
// here are the bytes and the processes.
func serve(t *testing.T, script string) (dial func() net.Conn, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sftp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "server")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &Server{Path: path, Dir: dir, Env: []string{"PATH=/usr/bin:/bin", "GIVEN=yes"}, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return func() net.Conn {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		t.Cleanup(func() { conn.Close() })
		return conn
	}, stop
}

func TestBytes(t *testing.T) {
	dial, _ := serve(t, "exec cat")
	a, b := dial(), dial()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		a.Write(sent)
		a.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(a) // to the end of cat
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent), err)
	}
	b.Write([]byte("x"))
	one := make([]byte, 1)
	if _, err := io.ReadFull(b, one); err != nil || one[0] != 'x' {
		t.Errorf("on another stream: %q, %v", one, err)
	}
}

func TestEnvironment(t *testing.T) {
	dial, _ := serve(t, "echo $GIVEN; pwd -P")
	conn := dial()
	got, err := io.ReadAll(conn)
	dir, _ := filepath.EvalSymlinks(filepath.Dir(conn.RemoteAddr().String()))
	if want := "yes\n" + dir + "\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func TestBounded(t *testing.T) {
	dial, stop := serve(t, "echo; exec cat")
	one := make([]byte, 1)
	for range most {
		if _, err := io.ReadFull(dial(), one); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dial().Read(one); err != io.EOF {
		t.Errorf("a stream too much gets %q, %v", one, err)
	}
	stop() // ends those that nobody ends
}
