package maitred_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

type moody struct {
	pb.UnimplementedMaitredServer
	code codes.Code
}

func (m moody) SetTime(context.Context, *pb.SetTimeRequest) (*pb.EmptyMessage, error) {
	return &pb.EmptyMessage{}, status.Error(m.code, "as told")
}

// Each call is told of with gRPC's name for its end; codes that a guest makes
// up are one.
func TestObserver(t *testing.T) {
	for name, test := range map[string]struct {
		guest    *moody
		code     string
		answered bool
	}{
		"an answer":        {&moody{}, "OK", true},
		"an error":         {&moody{code: codes.Internal}, "Internal", true},
		"an invented code": {&moody{code: 4711}, "Unknown", true},
		"nobody there":     {nil, "Unavailable", false},
	} {
		dir := t.TempDir()
		l, err := net.Listen("unix", filepath.Join(dir, "host"))
		if err != nil {
			t.Fatal(err)
		}
		agent := filepath.Join(dir, "agent")
		stop := func() {}
		if test.guest != nil {
			gl, err := net.Listen("unix", agent)
			if err != nil {
				t.Fatal(err)
			}
			s := grpc.NewServer()
			pb.RegisterMaitredServer(s, test.guest)
			served := make(chan struct{})
			go func() {
				defer close(served)
				s.Serve(gl)
			}()
			stop = func() { s.Stop(); <-served }
		}
		var mu sync.Mutex
		var calls []guestlink.Call
		k, err := maitred.New(vsock.NewListener(l, vsock.Addr{VM: "abc", CID: 33}, 7777),
			func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", agent) },
			slog.New(slog.DiscardHandler), maitred.WithObserver(func(c guestlink.Call) {
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, c)
			}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		k.SetTime(ctx, time.Now())
		cancel()
		k.Close()
		stop()
		if len(calls) != 1 || calls[0].Method != "SetTime" || calls[0].Code != test.code || calls[0].Answered != test.answered || calls[0].Took <= 0 {
			t.Errorf("%s: %+v", name, calls)
		}
	}
}
