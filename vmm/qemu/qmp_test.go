package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/qemu"
)

const (
	greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n"
	guestEnd = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}` + "\r\n"
	hostEnd  = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}` + "\r\n"
)

// A script answers the commands of one QMP connection: what it returns for a
// command is sent, with ID for the command's number; without an entry the
// answer is empty success. "close" ends the connection.
type script map[string]string

// fakeQEMU listens as a monitor would.
func fakeQEMU(t *testing.T, hello string, s script) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "monitor")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, hello)
		s.serve(c)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

func (s script) serve(c net.Conn) {
	sc := bufio.NewScanner(c)
	for sc.Scan() {
		var req struct {
			Execute string
			ID      json.Number
		}
		if json.Unmarshal(sc.Bytes(), &req) != nil {
			return
		}
		answer, ok := s[req.Execute]
		switch {
		case answer == "close":
			return
		case !ok:
			answer = `{"return": {}, "id": ID}` + "\r\n"
		}
		io.WriteString(c, strings.ReplaceAll(answer, "ID", req.ID.String()))
	}
}

func monitor(t *testing.T, hello string, s script) *qemu.Monitor {
	t.Helper()
	m, err := qemu.Driver{}.Monitor(t.Context(), fakeQEMU(t, hello, s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(*qemu.Monitor)
}

func TestExecute(t *testing.T) {
	m := monitor(t, greeting, script{
		"query-status": `{"return": {"status": "running"}, "id": ID}` + "\r\n",
		"events-first": guestEnd[:0] + `{"event": "RESUME", "timestamp": {}}` + "\r\n" + `{"return": 7, "id": 9999}` + "\r\n" +
			`{"event": "DEVICE_DELETED", "data": {"path": "/x"}}` + "\r\n" + `{"return": 5, "id": ID}` + "\r\n",
		"fail":  `{"error": {"class": "GenericError", "desc": "it does not want to"}, "id": ID}` + "\r\n",
		"shape": `{"return": "a word", "id": ID}` + "\r\n",
	})
	var status struct{ Status string }
	if err := m.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("status %q, %v", status.Status, err)
	}
	var n int
	if err := m.Execute(t.Context(), "events-first", map[string]any{"a": 1}, &n); err != nil || n != 5 {
		t.Errorf("an answer behind events: %d, %v", n, err)
	}
	if err := m.Execute(t.Context(), "fail", nil, nil); err == nil || !strings.Contains(err.Error(), "it does not want to") {
		t.Errorf("QEMU's refusal: %v", err)
	}
	if err := m.Execute(t.Context(), "shape", nil, &n); err == nil {
		t.Error("an answer of another shape was taken")
	}
	if err := m.Execute(t.Context(), "anything", nil, nil); err != nil {
		t.Errorf("after failures: %v", err)
	}
	if err := m.Execute(t.Context(), "bad arguments", make(chan int), nil); err == nil {
		t.Error("arguments that are no JSON were sent")
	}
}

// A deadline of one command is none of the next.
func TestExecuteDeadline(t *testing.T) {
	m := monitor(t, greeting, script{"sleep": ""})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Execute(ctx, "sleep", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
	if err := m.Execute(t.Context(), "query-status", nil, nil); err != nil {
		t.Errorf("the next: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := m.Execute(ctx, "sleep", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestMonitorThatIsNone(t *testing.T) {
	for name, hello := range map[string]string{
		"closed at once":     "",
		"text":               "hello\r\n",
		"an array":           "[]\r\n",
		"half a greeting":    greeting[:20],
		"an overlong line":   `{"QMP": "` + strings.Repeat("x", qemu.MaxQMPLine) + "\"}\r\n",
		"garbage":            "\x00\xff\x00\r\n",
		"nothing but events": guestEnd + guestEnd,
	} {
		path := filepath.Join(t.TempDir(), "monitor")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, hello)
			c.Close()
		}()
		if m, err := (qemu.Driver{}).Monitor(t.Context(), path); err == nil {
			m.Close()
			t.Errorf("%s: it was taken for QEMU's", name)
		}
		l.Close()
		<-done
	}
	if _, err := (qemu.Driver{}).Monitor(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
	// One that says nothing is given up.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := (qemu.Driver{}).Monitor(ctx, fakeQEMU(t, "", nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a mute one: %v", err)
	}
	// So is one that greets and then does not take the first command.
	if _, err := (qemu.Driver{}).Monitor(t.Context(), fakeQEMU(t, greeting, script{"qmp_capabilities": "close"})); err == nil {
		t.Error("one that closes in the middle was taken")
	}
	refusal := `{"error": {"class": "CommandNotFound", "desc": "no"}, "id": ID}` + "\r\n"
	if _, err := (qemu.Driver{}).Monitor(t.Context(), fakeQEMU(t, greeting, script{"qmp_capabilities": refusal})); err == nil {
		t.Error("one that refuses the negotiation was taken")
	}
}

func TestQuit(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		ok     bool
	}{
		"answered":          {`{"return": {}, "id": ID}` + "\r\n", true},
		"with the event":    {`{"return": {}, "id": ID}` + "\r\n" + hostEnd, true},
		"closed instead":    {"close", true},
		"refused":           {`{"error": {"class": "GenericError", "desc": "no"}, "id": ID}` + "\r\n", false},
		"garbage and close": {"}{\r\n", true},
	} {
		m := monitor(t, greeting, script{"quit": test.answer})
		if err := m.Quit(t.Context()); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := monitor(t, greeting, nil)
	m.Close()
	m.Close()
	if err := m.Quit(t.Context()); err == nil {
		t.Error("quit after close")
	}
}

func TestEnded(t *testing.T) {
	for name, test := range map[string]struct {
		last  string
		guest bool
	}{
		"nothing said":         {"", false},
		"the guest's end":      {guestEnd, true},
		"the host's":           {hostEnd, false},
		"both":                 {guestEnd + hostEnd, true},
		"the guest's, garbage": {guestEnd + "}{\r\n", true},
		"another event":        {`{"event": "RESET", "data": {"guest": true}}` + "\r\n", false},
	} {
		m := monitor(t, greeting, script{"bye": test.last + "}\r\n"})
		if err := m.Execute(t.Context(), "bye", nil, nil); err == nil {
			t.Errorf("%s: the last command succeeded", name)
		}
		if got := m.Ended(); got != test.guest {
			t.Errorf("%s: by the guest: %t", name, got)
		}
	}
}

// Answers find their commands when many are in flight.
func TestExecuteAtOnce(t *testing.T) {
	m := monitor(t, greeting, script{"echo": `{"return": ID, "id": ID}` + "\r\n"})
	errs := make(chan error)
	const n = 16
	for range n {
		go func() {
			var id int
			err := m.Execute(t.Context(), "echo", nil, &id)
			if err == nil && id == 0 {
				err = errors.New("an empty answer")
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// FuzzQMP lets QEMU, which a guest may have broken out into, say anything.
func FuzzQMP(f *testing.F) {
	ok := greeting + `{"return": {}, "id": 1}` + "\r\n"
	for _, s := range []string{"", greeting, ok, ok + guestEnd, ok + `{"return": {}, "id": 2}` + "\r\n",
		ok + `{"error": {"class": "x", "desc": "y"}, "id": 2}` + "\r\n", "[]\n", "null\n", `{"QMP": null}` + "\n", `{"id": "x"}` + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := socketPair(t)
		written := make(chan struct{})
		go func() {
			defer close(written)
			theirs.Write(data)
			theirs.CloseWrite()
			io.Copy(io.Discard, theirs)
			theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		m, err := qemu.NewMonitor(ctx, ours)
		if err == nil {
			var result any
			m.Execute(ctx, "query-status", nil, &result)
			m.Ended()
			m.Close()
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Error("it hangs")
		}
		<-written
	})
}

var _ vmm.Monitor = (*qemu.Monitor)(nil)
