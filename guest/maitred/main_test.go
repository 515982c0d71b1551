package maitred

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/core"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve returns a client of a server that change has prepared. While the test
// runs, its process may have no children but the server's.
func serve(t *testing.T, change func(*Server)) (pb.MaitredClient, *Server) {
	t.Helper()
	table := core.NewTable(quiet())
	services := core.NewSupervisor(table, quiet())
	server := NewServer(table, services, quiet())
	server.root = t.TempDir()
	if change != nil {
		change(server)
	}
	face := server.register()
	listener := bufconn.Listen(64 << 10)
	done := make(chan error, 1)
	go func() { done <- face.Serve(listener) }()
	conn := dial(t, listener)
	t.Cleanup(func() {
		conn.Close()
		face.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		services.Stop()
		server.resize.stop(time.Minute)
		table.Close()
	})
	return pb.NewMaitredClient(conn), server
}

func dial(t *testing.T, l *bufconn.Listener) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// wantCode fails the test unless err has this code, and a sentence with it.
func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("error %v, want the code %s", err, code)
	}
	if code != codes.OK && len(status.Convert(err).Message()) < 10 {
		t.Errorf("the error says nothing: %v", err)
	}
}
