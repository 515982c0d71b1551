package concierge

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A guest whose agent takes a call and never answers holds up nobody but
// itself, and its start can still be ended.
func TestGuestThatHangs(t *testing.T) {
	t.Setenv(guestEnv, "hangs")
	b := newBed(t)
	s := b.serve()
	hung := make(chan error, 1)
	go func() {
		_, err := b.small(s, "hung")
		hung <- err
	}()
	await(t, "its hypervisor runs", func() bool {
		r, err := s.GetVmInfo(t.Context(), alice, &pb.GetVmInfoRequest{Name: "hung"})
		return err == nil && r.VmInfo.Pid != 0
	})
	// The processes of its VM have what they need of the environment.
	os.Setenv(guestEnv, "")
	if _, err := b.small(s, "good"); err != nil {
		t.Errorf("another VM: %v", err)
	}
	list, err := s.ListVms(t.Context(), alice, &pb.ListVmsRequest{})
	if err != nil || len(list.Vms) != 2 {
		t.Errorf("the list: %v, %v", list, err)
	}
	b.stop(s, "good")
	select {
	case err := <-hung:
		t.Errorf("the start has an end already: %v", err)
	default:
	}
	b.stop(s, "hung")
	if err := <-hung; !errors.Is(err, errStopped) {
		t.Errorf("the start ends with %v", err)
	}
	b.changesOf("hung", "starting", "stopping", "stopped")
	b.gone()
}

// A guest that hangs for good costs its caller the deadline of a call.
func TestGuestThatHangsForGood(t *testing.T) {
	t.Setenv(guestEnv, "hangs")
	b := newBed(t)
	s := b.serve()
	if _, err := b.small(s, "x"); err == nil || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("the start ends with %v", err)
	}
	if got, want := b.events.take(), []string{"VmStartingUp x", "VmStopped x"}; !slices.Equal(got, want) {
		t.Errorf("signals %q, want %q", got, want)
	}
	b.gone()
}

// Whatever a guest or its backend says instead of what it should, the start
// fails with it, and nothing is left.
func TestGuestThatTalksNonsense(t *testing.T) {
	for what, says := range map[string]string{
		"a refusal":            "NO\n",
		"a line without end":   strings.Repeat("x", 1000),
		"zeros":                "\x01\x01\x01\n",
		"a port that is none":  "OK 99999999999999999999\n",
		"noise for HTTP/2":     "OK 1\n" + strings.Repeat("\xff\x01\x7f", 4096),
		"HTTP/1":               "OK 1\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"a frame that is huge": "OK 1\n\xff\xff\xff\x04\x01\x01\x01\x01\x01",
	} {
		t.Run(what, func(t *testing.T) {
			t.Setenv(guestEnv, "says:"+says)
			b := newBed(t)
			s := b.serve()
			before := time.Now()
			_, err := b.small(s, "x")
			if err == nil {
				t.Error("it started")
			}
			t.Logf("after %v: %v", time.Since(before), err)
			if got, want := b.events.take(), []string{"VmStartingUp x", "VmStopped x"}; !slices.Equal(got, want) {
				t.Errorf("signals %q, want %q", got, want)
			}
			b.gone()
		})
	}
}
