//go:build incus

// These tests want to be root of a machine with Incus and btrfs at
// /mnt/stateful; test/containers runs the same things in a VM.

package tremplin_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

type host struct {
	pb.UnimplementedTremplinListenerServer
	t     *testing.T
	mu    sync.Mutex
	all   []proto.Message
	new   chan struct{}
	moves string // where transfers are opened
	leave bool   // Incus running at the end
}

func (h *host) take(m proto.Message) (*pb.EmptyMessage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t.Logf("%s host: %T %s", time.Now().Format("05.000"), m, prototext.MarshalOptions{}.Format(m))
	h.all = append(h.all, m)
	close(h.new)
	h.new = make(chan struct{})
	return &pb.EmptyMessage{}, nil
}

func (h *host) TremplinReady(_ context.Context, m *pb.TremplinStartupInfo) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateStartLxdStatus(_ context.Context, m *pb.StartLxdProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateCreateStatus(_ context.Context, m *pb.ContainerCreationProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateDeletionStatus(_ context.Context, m *pb.ContainerDeletionProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateStartStatus(_ context.Context, m *pb.ContainerStartProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateStopStatus(_ context.Context, m *pb.ContainerStopProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateExportStatus(_ context.Context, m *pb.ContainerExportProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateImportStatus(_ context.Context, m *pb.ContainerImportProgress) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) ContainerShutdown(_ context.Context, m *pb.ContainerShutdownInfo) (*pb.EmptyMessage, error) {
	return h.take(m)
}
func (h *host) UpdateListeningPorts(_ context.Context, m *pb.ListeningPortInfo) (*pb.EmptyMessage, error) {
	return h.take(m)
}

// forget drops what was told so far.
func (h *host) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = nil
}

// await returns the first notice, taken or to come, that has M's type and pleases.
func await[M proto.Message](h *host, what string, pleases func(M) bool) M {
	h.t.Helper()
	deadline := time.After(3 * time.Minute)
	from := 0
	for {
		h.mu.Lock()
		for ; from < len(h.all); from++ {
			if m, ok := h.all[from].(M); ok && pleases(m) {
				h.all = append(h.all[:from:from], h.all[from+1:]...)
				h.mu.Unlock()
				return m
			}
		}
		next := h.new
		h.mu.Unlock()
		select {
		case <-next:
		case <-deadline:
			h.t.Fatalf("the host was not told: %s", what)
		}
	}
}

func start(t *testing.T, change func(*tremplin.Config)) (pb.TremplinClient, *host, func()) {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, new: make(chan struct{}), moves: filepath.Join(dir, "moves")}
	hl, err := net.Listen("unix", filepath.Join(dir, "host"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	pb.RegisterTremplinListenerServer(srv, h)
	go srv.Serve(hl)
	face, err := net.Listen("unix", filepath.Join(dir, "face"))
	if err != nil {
		t.Fatal(err)
	}
	moves, err := net.Listen("unix", h.moves)
	if err != nil {
		t.Fatal(err)
	}
	cfg := tremplin.DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	s, err := tremplin.NewServer(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)), func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "host"))
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, face, moves) }()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "face"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			if !h.leave {
				s.PowerOff(15 * time.Second)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			conn.Close()
			srv.Stop()
		})
	}
	t.Cleanup(stop)
	return pb.NewTremplinClient(conn), h, stop
}
