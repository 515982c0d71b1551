package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
)

const (
	stranger = 64199 // has no account
	patience = time.Minute
)

// TestMain makes the test binary the program, when it is called as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == policy.OpenCommand || os.Args[1] == "serve") {
		if os.Args[1] == "serve" {
			os.Args = append(os.Args[:1], os.Args[2:]...)
		}
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program prepares the program with sockets as systemd passes them.
func program(t *testing.T, passed []*os.File, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("acts as several users and needs root for that")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	args = append([]string{"-c", `LISTEN_PID=$$ exec "$0" serve --reserved-uids "" "$@"`, self}, args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env = []string{"GORACE=atexit_sleep_ms=0"}
	if len(passed) > 0 {
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+string(rune('0'+len(passed))))
		cmd.ExtraFiles = passed
	}
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func listen(t *testing.T, network string) (path string, f *os.File) {
	t.Helper()
	dir, err := os.MkdirTemp("", "helper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "socket")
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if f, err = l.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return path, f
}

// Started for a request that waits on systemd's socket, it answers that one,
// says that it is ready, and ends when nobody comes any more; the next request
// starts it again.
func TestSocketActivation(t *testing.T) {
	path, socket := listen(t, "unixpacket")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path + ".notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := helper.Client{Path: path}
	for range 2 {
		asked := make(chan error, 1)
		go func() {
			f, err := c.Open(ctx, policy.Caller{UID: stranger}, "/etc/passwd", policy.ReadOnly)
			if err == nil {
				f.Close()
			}
			asked <- err
		}()
		cmd, out := program(t, []*os.File{socket}, "--peer-user", "nobody", "--idle-exit", "100ms")
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path+".notify")
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := <-asked; err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b := make([]byte, 100)
		notify.SetReadDeadline(time.Now().Add(patience))
		if n, err := notify.Read(b); err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("it says %q, %v", b[:n], err)
		}
	}
}

// Its own socket is its peer's alone, and takes the place of one that was left.
func TestOwnSocket(t *testing.T) {
	path, _ := listen(t, "unixpacket") // what another one has left
	cmd, out := program(t, nil, "--peer-user", "nobody", "--socket", path, "--idle-exit", "100ms")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path + ".notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path+".notify")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	notify.SetReadDeadline(time.Now().Add(patience))
	if _, err := notify.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 || fi.Sys().(*syscall.Stat_t).Uid != 65534 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestRefusesToRun(t *testing.T) {
	_, stream := listen(t, "unix")
	_, packets := listen(t, "unixpacket")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, test := range map[string]struct {
		passed []*os.File
		args   []string
	}{
		"0 sockets were passed":  {},
		"2 sockets were passed":  {passed: []*os.File{packets, packets}},
		"want a Unix SOCK_SEQPA": {passed: []*os.File{stream}},
		"--peer-user":            {args: []string{"--peer-user", "nobody-of-this-name"}},
		"no range of uids":       {args: []string{"--reserved-uids", "x"}},
		"already in use":         {args: []string{"--socket", file}},
		"unknown command":        {args: []string{"exec"}},
	} {
		cmd, out := program(t, test.passed, append([]string{"--peer-user", "nobody"}, test.args...)...)
		if err := cmd.Run(); err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("%q: %v: %s", want, err, out)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file that was in the way is %q, %v", b, err)
	}
}
