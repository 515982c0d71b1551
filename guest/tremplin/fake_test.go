package tremplin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
)

// A fakeIncus answers as Incus does at moments that the real one has seldom:
// just started, or with its hands full. The real one is in test/containers.
type fakeIncus struct {
	t    *testing.T
	path string
	pid  int

	mu     sync.Mutex
	srv    *http.Server
	status map[string]string // of each instance
	busy   int               // changes that are refused, because of another one
	early  int               // looks at whether it has started that say no
	lists  int               // how often it was asked for all instances
	asks   int               // and for one
	events map[*websocket.Conn]bool

	uploads func() // is called by one
}

// newFakeIncus is a server and its Incus, which has started.
func newFakeIncus(t *testing.T, before ...func(*fakeIncus)) (*fakeIncus, *Server, *listener) {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{IncusDir: dir, Incusd: filepath.Join(dir, "incusd"), TokenDir: dir, TransferDir: dir, Heartbeat: time.Hour}
	// Something to look after in place of an incusd.
	process := exec.Command("sleep", "3600")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Process.Kill()
		process.Wait()
	})
	f := &fakeIncus{t: t, path: cfg.socket(), pid: process.Process.Pid, status: map[string]string{}, events: map[*websocket.Conn]bool{}}
	for _, change := range before {
		change(f)
	}
	f.begin()
	t.Cleanup(f.end)

	l, err := net.Listen("unix", filepath.Join(dir, "host"))
	if err != nil {
		t.Fatal(err)
	}
	host := &listener{}
	srv := grpc.NewServer()
	pb.RegisterTremplinListenerServer(srv, host)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	s, err := NewServer(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "host"))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.lxd.started = true
	s.left.pauseMin = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, do := range []func(context.Context){s.host.run, s.states.watch, s.left.run} {
		running.Go(func() { do(ctx) })
	}
	t.Cleanup(func() {
		s.jobs.stop()
		s.jobs.wait()
		cancel()
		running.Wait()
		s.daemon.release()
		s.incus.Close()
	})
	return f, s, host
}

// begin starts it, end kills it.
func (f *fakeIncus) begin() {
	os.Remove(f.path)
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it may close when there is the next one
	mux := http.NewServeMux()
	mux.HandleFunc("GET /1.0", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"environment": map[string]any{"server_pid": f.pid}})
	})
	mux.HandleFunc("GET /internal/ready", f.ready)
	mux.HandleFunc("GET /1.0/instances", f.list)
	mux.HandleFunc("GET /1.0/instances/{name}", f.instance)
	mux.HandleFunc("PUT /1.0/instances/{name}/state", f.change(func(string) string { return incus.Running }))
	mux.HandleFunc("DELETE /1.0/instances/{name}", f.change(func(string) string { return "" }))
	mux.HandleFunc("POST /1.0/images", func(http.ResponseWriter, *http.Request) { f.uploads() })
	srv := &http.Server{Handler: mux}
	mux.Handle("GET /1.0/events", websocket.Handler(func(c *websocket.Conn) { f.listen(srv, c) }))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.srv = srv
	go srv.Serve(l)
}

func (f *fakeIncus) end() {
	f.mu.Lock()
	f.srv.Close()
	f.srv = nil
	for c := range f.events {
		c.Close()
	}
	clear(f.events)
	f.mu.Unlock()
}

func (f *fakeIncus) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func reply(w http.ResponseWriter, v any) {
	json.NewEncoder(w).Encode(map[string]any{"type": "sync", "metadata": v})
}

func refuse(w http.ResponseWriter, code int, text string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"type": "error", "error_code": code, "error": text})
}

func (f *fakeIncus) ready(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.early > 0 {
		f.early--
		refuse(w, http.StatusServiceUnavailable, "Daemon not ready yet")
		return
	}
	reply(w, nil)
}

func (f *fakeIncus) list(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists++
	all := []map[string]string{}
	for name, status := range f.status {
		all = append(all, map[string]string{"name": name, "status": status})
	}
	reply(w, all)
}

func (f *fakeIncus) instance(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asks++
	name := r.PathValue("name")
	if f.status[name] == "" {
		refuse(w, http.StatusNotFound, "Instance not found")
		return
	}
	reply(w, map[string]string{"name": name, "status": f.status[name]})
}

// change is an operation that has ended when it is answered.
func (f *fakeIncus) change(to func(name string) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		name := r.PathValue("name")
		op := map[string]any{"id": "1", "status_code": 200}
		switch status := to(name); {
		case f.busy > 0:
			f.busy--
			op = map[string]any{"id": "1", "status_code": 400, "err": `Instance is busy running a "stop" operation`}
		case status == "":
			delete(f.status, name)
		default:
			f.status[name] = status
		}
		json.NewEncoder(w).Encode(map[string]any{"type": "async", "operation": "/1.0/operations/1", "metadata": op})
	}
}

func (f *fakeIncus) listen(srv *http.Server, c *websocket.Conn) {
	f.mu.Lock()
	if f.srv != srv { // it was killed meanwhile
		f.mu.Unlock()
		return
	}
	f.events[c] = true
	f.mu.Unlock()
	var none []byte
	websocket.Message.Receive(c, &none) // until it closes
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.events, c)
}

// happens tells of something that happened to an instance.
func (f *fakeIncus) happens(action, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.events {
		fmt.Fprintf(c, `{"type":"lifecycle","metadata":{"action":%q,"source":"/1.0/instances/%s"}}`, action, name)
	}
}

// eventually waits for something of which nothing tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatal("not yet: ", what)
		}
	}
}

func (l *listener) has(text string) bool {
	return strings.Contains(strings.Join(l.heard(), "\n"), text)
}
