package cicerone_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// A container is known by its token, and by nothing else.
func TestTokens(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	other, _ := w.up(s, "other", 34)
	token, _ := m.running(s, "penguin", 10000)
	foreign, _ := other.running(s, "penguin", 10000)
	pending, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina", ContainerName: "later"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		token string
		code  codes.Code
	}{
		"none":                 {"", codes.InvalidArgument},
		"too long":             {strings.Repeat("a", 37), codes.InvalidArgument},
		"made up":              {"11111111-2222-3333-4444-555555555555", codes.FailedPrecondition},
		"another VM's":         {foreign, codes.FailedPrecondition},
		"one not reported yet": {pending.ContainerToken, codes.FailedPrecondition},
		"its own":              {token, codes.OK},
	} {
		_, err := m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: test.token})
		if status.Code(err) != test.code {
			t.Errorf("%s: %v", name, err)
		}
		if test.code != codes.OK {
			if _, err := m.container.ContainerShutdown(t.Context(), &cpb.ContainerShutdownInfo{Token: test.token}); status.Code(err) != test.code {
				t.Errorf("%s: shutdown: %v", name, err)
			}
		}
	}
	for _, port := range []uint32{0, 8888, 20000} {
		if _, err := m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: pending.ContainerToken, GarconPort: port}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("port %d: %v", port, err)
		}
	}
	f.set(func() { f.info = tpb.GetContainerInfoResponse_STOPPED })
	if _, err := m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: pending.ContainerToken, GarconPort: 10000}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a container that does not run: %v", err)
	}
	if !w.isRunning(s, "termina", "penguin") || !w.isRunning(s, "other", "penguin") || w.isRunning(s, "termina", "later") {
		t.Error("somebody has reached another's container")
	}
	w.quiet()
}

// What one VM sends is bounded, and another is served meanwhile.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "hostile", 33)
	token, _ := m.running(s, "penguin", 10000)
	quiet, _ := w.up(s, "quiet", 34)
	quietToken, _ := quiet.running(s, "penguin", 10000)

	// A message of five megabytes, and one that is small and holds a million.
	_, err := m.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: token, Url: strings.Repeat("a", 5<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("five megabytes: %v", err)
	}
	_, err = m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token, Application: manyApplications()})
	if err == nil {
		t.Error("three hundred thousand applications are taken")
	}
	// Bytes that are not UTF-8.
	raw := append([]byte{0x0a, 2, 0xff, 0xfe, 0x12, byte(len(token))}, token...)
	err = m.containerLine.Invoke(t.Context(), "/vm_tools.container.ContainerListener/OpenUrl", &raw, &vmtoolspb.EmptyMessage{}, grpc.ForceCodec(rawCodec{}))
	if err == nil {
		t.Error("bytes that are not UTF-8 are taken")
	}
	// Ten thousand openings, as fast as they go.
	allowed := 0
	for i := range 10000 {
		_, err := m.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: token, Url: "https://example.org"})
		if err == nil {
			allowed++
		} else if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if _, err := m.container.OpenTerminal(t.Context(), &cpb.OpenTerminalRequest{Token: token}); err == nil {
				allowed++
			}
		}
	}
	if allowed > 500 { // ten in 15 seconds, however long this takes
		t.Errorf("%d of 10,500 were opened", allowed)
	}
	w.mu.Lock()
	if len(w.urls) == 0 || len(w.urls) > 500 {
		t.Errorf("%d URLs", len(w.urls))
	}
	w.mu.Unlock()
	// Another VM's token, and half requests: calls without their
	// message, as many as there may be, and more.
	if _, err := m.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: quietToken, Url: "https://example.org"}); err == nil {
		t.Error("another VM's token is taken")
	}
	half, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	for range 4 {
		line := m.line(8889)
		for range 32 {
			if _, err := line.NewStream(half, &grpc.StreamDesc{ClientStreams: true}, "/vm_tools.container.ContainerListener/OpenUrl"); err != nil {
				t.Fatal(err)
			}
		}
	}
	must(t)(quiet.container.LowDiskSpaceTriggered(t.Context(), &cpb.LowDiskSpaceTriggeredInfo{Token: quietToken}))
	next[*pb.LowDiskSpaceTriggeredSignal](w, "LowDiskSpaceTriggered")
	giveUp()
	// Connections that say nothing, and such that never end a call.
	var conns []net.Conn
	for range 3000 {
		c, err := net.Dial("unix", m.path("h", 8889))
		if err != nil {
			break // the queue is full
		}
		conns = append(conns, c)
		io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	}
	if len(conns) < 64 {
		t.Errorf("only %d connections were made", len(conns))
	}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	must(t)(quiet.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: quietToken, Url: "https://example.org"}))
	must(t)(m.tremplin.UpdateListeningPorts(t.Context(), &tpb.ListeningPortInfo{}))
	if !w.isRunning(s, "quiet", "penguin") {
		t.Error("it does not run")
	}
}

func manyApplications() []*cpb.Application {
	a := &cpb.Application{}
	all := make([]*cpb.Application, 300000)
	for i := range all {
		all[i] = a
	}
	return all
}

type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(_ []byte, _ any) error { return nil }
func (rawCodec) Name() string                    { return "proto" }

// Dialogs are few, answered by whose they are, and end with the container.
func TestFileDialogs(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	m.running(s, "other", 10001)
	var calls sync.WaitGroup
	answers := make(chan error, 10)
	for range 9 {
		calls.Go(func() {
			_, err := m.container.SelectFile(t.Context(), &cpb.SelectFileRequest{Token: token, Type: "open-file"})
			answers <- err
		})
	}
	if err := <-answers; status.Code(err) != codes.ResourceExhausted {
		t.Errorf("nine dialogs: %v", err)
	}
	d := <-w.dialogs
	if d.VmName != "termina" || d.ContainerName != "penguin" || d.OwnerId != "4711" || d.Type != "open-file" || len(d.SelectFileToken) != 36 {
		t.Errorf("%v", d)
	}
	for _, r := range []*pb.FileSelectedSignal{
		{VmName: "termina", ContainerName: "other", SelectFileToken: d.SelectFileToken},
		{VmName: "termina", ContainerName: "", SelectFileToken: d.SelectFileToken},
		{VmName: "termina", ContainerName: "penguin", SelectFileToken: "another"},
	} {
		if _, err := s.FileSelected(t.Context(), subject(), r); err == nil {
			t.Errorf("%v is an answer", r)
		}
	}
	if _, err := s.FileSelected(t.Context(), subject(), &pb.FileSelectedSignal{VmName: "termina", ContainerName: "penguin", SelectFileToken: d.SelectFileToken, Files: []string{"/x"}}); err != nil {
		t.Error(err)
	}
	if err := <-answers; err != nil {
		t.Error(err)
	}
	must(t)(m.container.ContainerShutdown(t.Context(), &cpb.ContainerShutdownInfo{Token: token}))
	calls.Wait()
	close(answers)
	for err := range answers {
		if status.Code(err) != codes.Canceled {
			t.Errorf("%v", err)
		}
	}
}

// A container that opens a dialog, takes it back and opens the next one does so
// a few times only.
func TestFileDialogsAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	shown, refused := 0, 0
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error, 1)
		go func() {
			_, err := m.container.SelectFile(ctx, &cpb.SelectFileRequest{Token: token, Type: "open-file"})
			answer <- err
		}()
		select {
		case <-w.dialogs:
			shown++
			cancel()
			<-answer
		case err := <-answer:
			cancel()
			if status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "in 15 seconds") {
				refused++
			} else if !strings.Contains(err.Error(), "are open") { // one that was taken back may not have gone yet
				t.Fatal(err)
			}
		}
	}
	if shown == 0 || shown > 100 || refused == 0 { // ten in 15 seconds, however long this takes
		t.Errorf("%d of 200 are shown, %d are refused", shown, refused)
	}
}

// URLs are the host's when the desktop gets them.
func TestURLs(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	for i, test := range []struct{ in, out string }{
		{"https://example.org/a?b#c", "https://example.org/a?b#c"},
		{"HTTP://localhost:8080/x", "http://100.115.192.5:8080/x"},
		{"http://127.0.0.1/", "http://100.115.192.5/"},
		{"http://[::1]:80/", "http://100.115.192.5:80/"},
		{"http://0.0.0.0:3000", "http://100.115.192.5:3000"},
		{"mailto:a@example.org", "mailto:a@example.org"},
		{"file:///home/ada/../../etc/passwd", ""},
		{"file:///etc/passwd", ""},
		{"javascript:alert(1)", ""},
		{"steam://run/1", ""},
		{"/etc/passwd", ""},
		{"http:localhost", ""},
		{"https:///localhost", ""},
		{"http:\\\\localhost", ""},
		{"http://ip6-localhost:1/", "http://100.115.192.5:1/"},
		{"http://localhost.localdomain./", "http://100.115.192.5/"},
		{"http://a.LOCALHOST/", "http://100.115.192.5/"},
		// What becomes localhost when it is looked up, and what does not.
		{"http://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/", "http://100.115.192.5/"},
		{"http://%EF%BD%8Cocalhost/", "http://100.115.192.5/"},
		{"http://local\u00adhost:80/", "http://100.115.192.5:80/"},
		{"http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "http://100.115.192.5/"},
		{"http://127\u30020\u30020\u30021/", "http://100.115.192.5/"},
		{"http://127\u30021/", ""},
		{"https://m\u00fcnchen.example/\u00fc", "https://xn--mnchen-3ya.example/%C3%BC"},
		{"http://\u202elocalhost/", ""},
		{"http://127.1/", ""},
		{"http://0x7f000001/", ""},
		{"http://2130706433/", ""},
		{"--help", ""},
		{"http://a b/", ""},
		{"http://a/\n", ""},
		{"", ""},
	} {
		m, _ := w.up(s, fmt.Sprint("vm", i), uint32(100+i)) // each has its own allowance
		token, _ := m.running(s, "penguin", 10000)
		_, err := m.container.OpenUrl(t.Context(), &cpb.OpenUrlRequest{Token: token, Url: test.in})
		var got string
		w.mu.Lock()
		if len(w.urls) > 0 {
			got = w.urls[0]
		}
		w.urls = nil
		w.mu.Unlock()
		if got != test.out || (err == nil) != (test.out != "") {
			t.Errorf("%q: %q, %v", test.in, got, err)
		}
	}
}

// Crash reports are answered, and nothing of them is kept.
func TestCrashReports(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	_ = s
	c := pb.NewCrashListenerClient(m.line(7779))
	r, err := c.CheckMetricsConsent(t.Context(), &vmtoolspb.EmptyMessage{})
	if err != nil || r.ConsentGranted {
		t.Errorf("%v, %v", r, err)
	}
	refused := 0
	for range 100 {
		if _, err := c.SendCrashReport(t.Context(), &pb.CrashReport{Metadata: map[string]string{"exec_name": "x\x1b[31m"}, Minidump: bytes.Repeat([]byte{1}, 1000)}); err != nil {
			refused++
		}
	}
	if refused != 80 {
		t.Errorf("%d of 100 reports were refused", refused)
	}
}

// Metrics have their limits.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	report := func(names ...string) codes.Code {
		r := &cpb.ReportMetricsRequest{Token: token}
		for _, n := range names {
			r.Metric = append(r.Metric, &cpb.Metric{Name: n})
		}
		_, err := m.container.ReportMetrics(t.Context(), r)
		return status.Code(err)
	}
	if c := report("A-z.9"); c != codes.OK {
		t.Error(c)
	}
	for _, bad := range []string{"", "a b", strings.Repeat("a", 65)} {
		if c := report(bad); c != codes.InvalidArgument {
			t.Errorf("%q: %v", bad, c)
		}
	}
	if c := report(make([]string, 33)...); c != codes.InvalidArgument {
		t.Error(c)
	}
	n := 1
	for report("a") == codes.OK {
		n++
	}
	if n != 40 {
		t.Errorf("%d reports in a minute", n)
	}
}
