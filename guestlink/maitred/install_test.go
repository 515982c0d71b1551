package maitred_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// What a guest says that installs itself is bounded and passed on, and nothing
// of it comes once the link is closed.
func TestInstallStatus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm.vsock_7777")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	heard, let := make(chan guestlink.InstallState), make(chan struct{})
	var order []string
	var mu sync.Mutex
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	k, err := maitred.New(l, nil, slog.New(slog.DiscardHandler), maitred.WithInstallListener(func(s guestlink.InstallState) {
		heard <- s
		<-let
		note("heard")
	}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ended := make(chan error)
	go func() {
		_, err := pb.NewStartupListenerClient(c).VmInstallStatus(context.Background(),
			&pb.VmInstallState{State: 77, InProgressPercent: 1000, FailedReason: "a\x1b[2Jb\n"})
		ended <- err
	}()
	if got, want := <-heard, (guestlink.InstallState{State: 77, Percent: 100, Reason: "a [2Jb "}); got != want {
		t.Errorf("heard %+v, want %+v", got, want)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		k.Close()
		note("closed")
	}()
	if err := <-ended; err == nil {
		t.Error("the call of a closed link had an answer")
	}
	// All that is left for Close to wait for is the listener.
	for range 10000 {
		runtime.Gosched()
	}
	close(let)
	<-closed
	if len(order) != 2 || order[0] != "heard" {
		t.Errorf("the order is %q", order)
	}
}
