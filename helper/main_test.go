package helper_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/vsock"
)

var discard = slog.New(slog.DiscardHandler)

// nobody has an account and no rights; stranger has not even an account.
const (
	nobody   = 65534
	stranger = 64199
)

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

// TestMain makes the test binary the program that opens files, and a peer of
// another user.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case policy.OpenCommand:
			os.Exit(policy.OpenMain(os.Args[2:]))
		case "ask":
			ask(os.Args[2], os.Args[3])
		}
	}
	goleak.VerifyTestMain(m)
}

// ask is a peer that wants a file opened as stranger.
func ask(socket, path string) {
	c := helper.Client{Path: socket}
	f, err := c.Open(context.Background(), policy.Caller{UID: stranger}, path, policy.ReadOnly)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	f.Close()
	os.Exit(0)
}

// askAs runs a peer as another user.
func askAs(t *testing.T, uid uint32, socket, path string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "ask", socket, path)
	cmd.Env, cmd.Dir = []string{"GORACE=atexit_sleep_ms=0"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("acts as several users and needs root for that")
	}
}

// undialled fails a test that reaches a guest: what is refused must not be
// tried, and this machine's AF_VSOCK is nobody's toy.
func undialled(t *testing.T) func(context.Context, vsock.Addr) (*vsock.Conn, error) {
	return func(_ context.Context, a vsock.Addr) (*vsock.Conn, error) {
		t.Errorf("%v was dialled", a)
		return nil, syscall.ENODEV
	}
}

func untaken(t *testing.T) func(uint32) (*os.File, error) {
	return func(cid uint32) (*os.File, error) {
		t.Errorf("the CID %d was taken", cid)
		return nil, syscall.ENODEV
	}
}

// A server that runs, its client, and its log.
type running struct {
	*helper.Client
	log  *syncbuf.Buffer
	stop func()
}

// serve starts a server like the real one, with what change says.
func serve(t *testing.T, change func(*helper.Server)) *running {
	t.Helper()
	return serveAt(t, filepath.Join(publicDir(t), "socket"), change)
}

func serveAt(t *testing.T, path string, change func(*helper.Server)) *running {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	r := &running{Client: &helper.Client{Path: path}, log: &syncbuf.Buffer{}}
	s := &helper.Server{PeerUID: uint32(os.Geteuid()), MinUID: 1000, Opener: &policy.Opener{},
		DialGuest: undialled(t), ReserveCID: untaken(t), Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		l.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// publicDir is a directory that everybody can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "helper") // short, because socket addresses are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, text string, mode os.FileMode, uid, gid int) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// descriptors counts this process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func asked(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
