package incus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAnAnswerIsRead(t *testing.T) {
	var s Server
	a, err := decode("GET /1.0", 200, []byte(`{"type":"sync","metadata":{"environment":{"server_pid":7}}}`), &s)
	if err != nil || a.Type != "sync" || s.Environment.PID != 7 {
		t.Error(a, s, err)
	}
	_, err = decode("GET /x", 404, []byte(`{"type":"error","error":"Instance not found","error_code":404}`), nil)
	if !IsNotFound(err) || IsGone(err) || err.Error() != "Incus: Instance not found" {
		t.Error(err)
	}
	_, err = decode("DELETE /x", 400, []byte(`{"type":"error","error":"Instance is busy running a \"create\" operation","error_code":400}`), nil)
	if !IsBusy(err) {
		t.Error(err)
	}
	if _, err = decode("GET /x", 200, []byte(`<html>`), nil); err == nil || !strings.Contains(err.Error(), "GET /x") {
		t.Error(err)
	}
}

func TestAServerThatIsNotThereIsGone(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "socket"))
	defer c.Close()
	if _, err := c.Server(t.Context()); !IsGone(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("nobody wants it")
	cancel(why)
	if _, err := c.begin(ctx, http.MethodPost, "/1.0/x", nil); !errors.Is(err, why) {
		t.Error(err)
	}
}

// An answer that never ends is cut off. The server is not Incus, which does
// not do that.
func TestAnAnswerIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := fmt.Fprint(w, strings.Repeat(" ", 1<<16)); err != nil {
				return
			}
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	c := New(path)
	defer c.Close()
	if _, err := c.Server(t.Context()); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Error(err)
	}
}

// A server that takes a call and never answers keeps nobody for ever, nor the
// calls that wait for their turn. It is not Incus, which cannot be made to.
func TestAServerThatHangsIsGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := New(path)
	defer c.Close()
	c.wait = 20 * time.Millisecond
	for range 2 {
		if _, err := c.Server(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	if len(c.turn) != 0 {
		t.Error("the turn was not given back")
	}
}

func TestFingerprints(t *testing.T) {
	good := strings.Repeat("a1", 32)
	for _, f := range []string{"", "../../etc/passwd", strings.Repeat("A1", 32), good + "0", good[:63] + "/"} {
		if _, err := (Operation{Metadata: map[string]any{"fingerprint": f}}).Fingerprint(); err == nil {
			t.Errorf("%q was taken", f)
		}
	}
	if f, err := (Operation{Metadata: map[string]any{"fingerprint": good}}).Fingerprint(); err != nil || f != good {
		t.Error(f, err)
	}
}

func TestTheAddressOfAContainer(t *testing.T) {
	var s State
	err := json.Unmarshal([]byte(`{"network":{"lo":{"addresses":[{"family":"inet","address":"127.0.0.1","scope":"local"}]},
		"eth0":{"addresses":[{"family":"inet6","address":"fe80::1","scope":"link"},{"family":"inet","address":"100.115.92.194","scope":"global"}]}}}`), &s)
	if ip, ok := s.IPv4(); err != nil || !ok || ip.String() != "100.115.92.194" {
		t.Error(ip, ok, err)
	}
}

func FuzzLifecycle(f *testing.F) {
	f.Add([]byte(`{"type":"lifecycle","metadata":{"action":"instance-stopped","source":"/1.0/instances/penguin"}}`))
	f.Add([]byte(`{"type":"lifecycle","metadata":{"action":"instance-snapshot-created","source":"/1.0/instances/penguin/snapshots/x"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, ok := parseLifecycle(data); ok && strings.Contains(l.Instance, "/") {
			t.Errorf("%q", l)
		}
	})
}
