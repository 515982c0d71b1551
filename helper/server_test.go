package helper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vsock"
)

// Only the peer's user and root are answered, whoever can reach the socket.
func TestPeer(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	own := write(t, filepath.Join(dir, "own"), "own", 0o600, stranger, stranger)
	r := serve(t, func(s *helper.Server) { s.PeerUID = stranger + 5 })
	if out, err := askAs(t, stranger+5, r.Path, own); err != nil {
		t.Errorf("the peer: %v: %s", err, out)
	}
	for _, uid := range []uint32{stranger, nobody, stranger + 6} {
		if out, err := askAs(t, uid, r.Path, own); err == nil || !strings.Contains(out, "hung up without an answer") {
			t.Errorf("uid %d: %v: %s", uid, err, out)
		}
	}
	f, err := r.Open(asked(t), policy.Caller{UID: stranger}, own, policy.ReadOnly)
	if err != nil {
		t.Fatalf("root: %v", err)
	}
	f.Close()
	r.stop()
	if n := strings.Count(r.log.String(), "refused a connection"); n != 3 {
		t.Errorf("%d refusals in the log:\n%s", n, r.log)
	}
}

// A slowOpener opens nothing for one user until it is let go.
type slowOpener struct {
	policy.Opener
	slow    uint32
	working chan struct{} // a word for each that is in work
	release chan struct{}
}

func (o *slowOpener) Open(ctx context.Context, c policy.Caller, path string, mode policy.Mode) (*os.File, error) {
	if c.UID == o.slow {
		o.working <- struct{}{}
		select {
		case <-o.release:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return o.Opener.Open(ctx, c, path, mode)
}

// A user whose files do not answer keeps nobody else from theirs, and has a
// bound.
func TestOneUserDoesNotKeepOthers(t *testing.T) {
	needRoot(t)
	all := write(t, filepath.Join(publicDir(t), "all"), "all", 0o444, 0, 0)
	o := &slowOpener{slow: stranger, working: make(chan struct{}, helper.MaxConns), release: make(chan struct{})}
	r := serve(t, func(s *helper.Server) { s.Opener = o })
	errs := make(chan error, helper.MaxConns)
	open := func() {
		f, err := r.Open(asked(t), policy.Caller{UID: stranger}, all, policy.ReadOnly)
		if err == nil {
			f.Close()
		}
		errs <- err
	}
	const more = 5
	for range helper.MaxWorking + helper.MaxWaiting + more {
		go open()
	}
	for range helper.MaxWorking {
		<-o.working
	}
	for range more { // those for whom there is no room
		if err := <-errs; !errors.Is(err, helper.ErrBusy) {
			t.Errorf("one too many: %v", err)
		}
	}
	if len(o.working) > 0 {
		t.Error("more than the bound are in work")
	}
	f, err := r.Open(asked(t), policy.Caller{UID: stranger + 1}, all, policy.ReadOnly)
	if err != nil {
		t.Fatalf("another user: %v", err)
	}
	f.Close()
	close(o.release)
	for range helper.MaxWorking + helper.MaxWaiting {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Peers that say nothing lose their place.
func TestSilentPeers(t *testing.T) {
	r := serve(t, func(s *helper.Server) { s.SetGrace(20 * time.Millisecond) })
	for range helper.MaxConns + 20 {
		r.raw(t)
	}
	if _, err := r.Open(asked(t), policy.Caller{UID: 0}, "/x", policy.ReadOnly); !errors.Is(err, helper.ErrRefused) {
		t.Error(err)
	}
}

// Whoever hangs up is not worked for any longer.
func TestHangUp(t *testing.T) {
	o := &slowOpener{slow: stranger, working: make(chan struct{}, 1), release: make(chan struct{})}
	r := serve(t, func(s *helper.Server) { s.Opener = o })
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller has left")
	done := make(chan error, 1)
	go func() {
		_, err := r.Open(ctx, policy.Caller{UID: stranger}, "/x", policy.ReadOnly)
		done <- err
	}()
	<-o.working
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("the client says %v", err)
	}
	// It would hang here otherwise: nobody releases the opening.
	r.stop()
	if !strings.Contains(r.log.String(), "hung up") && !strings.Contains(r.log.String(), "canceled") {
		t.Errorf("the log says:\n%s", r.log)
	}
}

// A helper that was ended is missed with words that help; the next one is
// used without further ado.
func TestRestart(t *testing.T) {
	path := filepath.Join(publicDir(t), "socket")
	c := &helper.Client{Path: path}
	refused := func() error {
		_, err := c.Open(asked(t), policy.Caller{UID: 0}, "/x", policy.ReadOnly)
		return err
	}
	if err := refused(); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "auberge-helper.socket") {
		t.Errorf("without a helper: %v", err)
	}
	for range 2 {
		r := serveAt(t, path, nil)
		if err := refused(); !errors.Is(err, helper.ErrRefused) {
			t.Error(err)
		}
		r.stop()
		if err := refused(); err == nil || errors.Is(err, helper.ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Errorf("after its end: %v", err)
		}
	}
}

// One that is ended in the middle of its work says nothing more, and the
// client does not wait for it.
func TestEndedAtWork(t *testing.T) {
	o := &slowOpener{slow: stranger, working: make(chan struct{}, 1), release: make(chan struct{})}
	r := serve(t, func(s *helper.Server) { s.Opener = o })
	done := make(chan error, 1)
	go func() {
		_, err := r.Open(asked(t), policy.Caller{UID: stranger}, "/x", policy.ReadOnly)
		done <- err
	}()
	<-o.working
	r.stop()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "uid 64199") {
		t.Errorf("%v", err)
	}
}

// It ends by itself when it is not needed, and not before.
func TestIdle(t *testing.T) {
	o := &slowOpener{slow: stranger, working: make(chan struct{}, 1), release: make(chan struct{})}
	path := filepath.Join(publicDir(t), "socket")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &helper.Server{PeerUID: uint32(os.Geteuid()), MinUID: 1000, Opener: o, Log: discard, Idle: 10 * time.Millisecond}
	var wg sync.WaitGroup
	wg.Go(func() {
		c := helper.Client{Path: path}
		_, err := c.Open(asked(t), policy.Caller{UID: stranger}, "/nowhere/at/all", policy.ReadOnly)
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, policy.ErrUnprivileged) {
			t.Errorf("in the end: %v", err)
		}
	})
	over := make(chan error, 1)
	go func() { over <- s.Serve(t.Context(), l) }()
	<-o.working
	select {
	case err := <-over:
		t.Fatalf("it ended at work: %v", err)
	case <-time.After(100 * time.Millisecond): // ten times what it waits for
	}
	close(o.release)
	wg.Wait()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

// Nothing is dialled but guests; this machine's own AF_VSOCK is not touched.
func TestDialRefused(t *testing.T) {
	r := serve(t, nil)
	for name, a := range map[string]vsock.Addr{
		"hypervisor":      {CID: 0, Port: 8888},
		"loopback":        {CID: 1, Port: 8888},
		"host":            {CID: 2, Port: 8888},
		"somebody else's": {CID: 31, Port: 8888},
		"any":             {CID: vsock.CIDAny, Port: 8888},
		"port 0":          {CID: 40, Port: 0},
		"any port":        {CID: 40, Port: 1<<32 - 1},
		"VM with a path":  {CID: 40, Port: 8888, VM: "../x"},
		"VM with lines":   {CID: 40, Port: 8888, VM: "a\nb"},
		"VM of a kind":    {CID: 40, Port: 8888, VM: strings.Repeat("x", 65)},
	} {
		if a.Port == 8888 {
			if f, err := r.ReserveCID(asked(t), a); f != nil || !errors.Is(err, helper.ErrRefused) {
				t.Errorf("the CID, %s: %v, %v", name, f, err)
			}
		}
		if c, err := r.Dial(asked(t), a); c != nil || !errors.Is(err, helper.ErrRefused) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

// A stream that was dialled arrives whole, and a failure with its number. The
// guest is a stand-in: no test dials AF_VSOCK here.
func TestDial(t *testing.T) {
	guest := vsock.Addr{VM: "abc", CID: 40, Port: 8888}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	defer ours.Close()
	r := serve(t, func(s *helper.Server) {
		s.DialGuest = func(_ context.Context, a vsock.Addr) (*vsock.Conn, error) {
			if a != guest {
				return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: a, Err: syscall.ECONNRESET}
			}
			defer theirs.Close()
			return vsock.FileConn(theirs, a)
		}
	})
	c, err := r.Dial(asked(t), guest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, ok := vsock.PeerOf(c); !ok || p != guest {
		t.Errorf("the peer is %v", p)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if b, err := io.ReadAll(ours); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := r.Dial(asked(t), vsock.Addr{CID: 41, Port: 8888}); !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), "vsock:41:8888") {
		t.Errorf("a guest that does not listen: %v", err)
	}
}

// A CID that another guest has is known by its error.
func TestReserveCID(t *testing.T) {
	r := serve(t, func(s *helper.Server) {
		s.ReserveCID = func(cid uint32) (*os.File, error) {
			if cid == 40 {
				return nil, fmt.Errorf("take the CID: %w", syscall.EADDRINUSE)
			}
			return os.Open("/dev/null")
		}
	})
	if f, err := r.ReserveCID(asked(t), vsock.Addr{CID: 40}); f != nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, %v", f, err)
	}
	f, err := r.ReserveCID(asked(t), vsock.Addr{VM: "abc", CID: 41})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestUIDRange(t *testing.T) {
	for text, want := range map[string]helper.UIDRange{
		"61184-65535": helper.ReservedUIDs, "": {}, "5-5": {First: 5, Last: 5}, "1-4294967295": {First: 1, Last: 1<<32 - 1},
	} {
		var r helper.UIDRange
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%q: %v, %v", text, r, err)
		}
		if b, err := r.MarshalText(); err != nil || string(b) != text {
			t.Errorf("%q became %q, %v", text, b, err)
		}
	}
	for _, text := range []string{"5", "-", "5-", "-5", "0-5", "6-5", "a-b", "1-4294967296", "1-2-3", " 1-2"} {
		if err := new(helper.UIDRange).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
