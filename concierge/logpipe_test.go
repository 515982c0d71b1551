package concierge

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// bigLog gives a VM a log that fits no pipe and no reply.
func (b *bed) bigLog(s *Service, name string) (lines int) {
	b.t.Helper()
	path := s.logPath(keyOf(alice.Owner, name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	var text strings.Builder
	for ; text.Len() < 3<<20; lines++ {
		fmt.Fprintf(&text, "2026-11-21T19:00:00.000000Z user info: %d%s\n", lines, strings.Repeat("é", 400))
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return lines
}

func TestBigLog(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	lines := b.bigLog(s, "x")
	r, err := s.GetVmLogs(t.Context(), alice, &pb.GetVmLogsRequest{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(r.Log, "\n")
	if len(r.Log) > maxLogReply || !strings.Contains(first, "left out here; OpenVmLogs gives all of them") ||
		!strings.HasPrefix(rest, "2026-11-21T19:00:00.000000Z user info: ") || !strings.Contains(r.Log, fmt.Sprintf(" %dé", lines-1)) {
		t.Errorf("%d bytes, %.200q", len(r.Log), first)
	}
	f := b.mustOpen(s, "x", LogOptions{})
	n := 0
	for f.Scan() {
		n++
	}
	if n != lines || f.Err() != nil {
		t.Errorf("%d of %d lines, %v", n, lines, f.Err())
	}
}

// A user has a few logs open at a time, all users together some more; a reader
// that goes away makes room at once, though nothing is written.
func TestOpenLogsAreBounded(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	lines := b.bigLog(s, "x")
	open := map[uint32][]*os.File{}
	as := func(uid uint32) policy.Subject {
		sub := alice
		sub.Caller.UID = uid
		return sub
	}
	for uid := range uint32(maxLogPipes / maxUserLogPipes) {
		for range maxUserLogPipes {
			// Those with all lines are stuck in their pipes, the others wait.
			f, err := b.open(s, as(uid), "x", LogOptions{Follow: true, Lines: uid % 2})
			if err != nil {
				t.Fatal(err)
			}
			open[uid] = append(open[uid], f)
		}
		if _, err := b.open(s, as(uid), "x", LogOptions{Follow: true}); err == nil || !strings.Contains(err.Error(), "you have 16 logs open") {
			t.Errorf("one more: %v", err)
		}
	}
	if _, err := b.open(s, as(1000), "x", LogOptions{}); err == nil || !strings.Contains(err.Error(), "256 logs are open") {
		t.Errorf("one more of another user: %v", err)
	}
	for uid := range uint32(2) {
		open[uid][0].Close()
		deadline := time.After(patienceOfTests)
		for { // nothing announces it
			if _, err := b.open(s, as(uid), "x", LogOptions{Follow: true, Lines: uid}); err == nil {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("a reader of uid %d that has gone is not noticed", uid)
			default:
				runtime.Gosched()
			}
		}
	}
	// All of them end with the service, with what is in the pipes.
	s.Close()
	for uid, files := range open {
		for _, f := range files[1:] {
			b, err := io.ReadAll(f)
			if err != nil || len(b) == 0 || uid == 1 && strings.Count(string(b), "\n") != 1 || uid == 0 && strings.Count(string(b), "\n") >= lines {
				t.Errorf("uid %d: %d bytes, %v", uid, len(b), err)
			}
		}
	}
	if _, err := s.OpenVmLogs(context.Background(), alice, "x", LogOptions{}); err == nil {
		t.Error("a closed service opens logs")
	}
}
