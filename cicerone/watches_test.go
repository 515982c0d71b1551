package cicerone_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
)

// A directory is watched until that is taken back or the container stops, also
// when the agent that does it ends without a word, and when the service that
// was asked for it does.
func TestWatchesOutliveAgents(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, stop := m.running(s, "penguin", 10000)
	watch := func(path string) {
		t.Helper()
		r, err := s.AddFileWatch(t.Context(), subject(), &pb.AddFileWatchRequest{VmName: "termina", ContainerName: "penguin", Path: path})
		if err != nil || r.Status != pb.AddFileWatchResponse_SUCCEEDED {
			t.Fatalf("%v, %v", r, err)
		}
	}
	for _, path := range []string{"Documents", "a", "gone", "b"} {
		watch(path)
	}
	must(t)(s.RemoveFileWatch(t.Context(), subject(), &pb.RemoveFileWatchRequest{VmName: "termina", ContainerName: "penguin", Path: "a"}))
	// again has the next agent report, and returns what it is to watch.
	again := func(port uint32, n int) []string {
		t.Helper()
		g := watcher{paths: make(chan string, 16)}
		before := stop
		stop = m.agent(port, func(s *grpc.Server) { cpb.RegisterGarconServer(s, g) })
		defer before() // not earlier: a service that is new looks for it
		must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: port}))
		next[*pb.ContainerStartedSignal](w, "ContainerStarted")
		var paths []string
		for range n {
			select {
			case p := <-g.paths:
				paths = append(paths, p)
			case <-time.After(patience):
				t.Fatalf("only %q are watched again", paths)
			}
		}
		// What is asked for now comes last.
		watch("last")
		for p := range g.paths {
			if p == "last" {
				return paths
			}
			paths = append(paths, p)
		}
		return paths
	}
	if got, want := again(10001, 3), []string{"Documents", "b", "gone"}; !slices.Equal(got, want) {
		t.Errorf("%q are watched again, not %q", got, want)
	}
	must(t)(s.RemoveFileWatch(t.Context(), subject(), &pb.RemoveFileWatchRequest{VmName: "termina", ContainerName: "penguin", Path: "last"}))
	s.Close()
	s = w.serve()
	if got, want := again(10002, 2), []string{"Documents", "b"}; !slices.Equal(got, want) {
		t.Errorf("after a restart of the service %q are watched again, not %q", got, want)
	}
	must(t)(m.container.ContainerShutdown(t.Context(), &cpb.ContainerShutdownInfo{Token: token}))
	next[*pb.ContainerShutdownSignal](w, "ContainerShutdown")
	if got := again(10003, 0); len(got) != 0 {
		t.Errorf("%q are watched in a container that was started anew", got)
	}
	w.quiet()
}

func TestWatchesAreFew(t *testing.T) {
	for name, path := range map[string]func(i int) string{
		"many": func(i int) string { return fmt.Sprint(i) },
		"long": func(i int) string { return strings.Repeat("x", 3000) + fmt.Sprint(i) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve()
			m, _ := w.up(s, "termina", 33)
			m.running(s, "penguin", 10000)
			add := func(i int) error {
				_, err := s.AddFileWatch(t.Context(), subject(), &pb.AddFileWatchRequest{VmName: "termina", ContainerName: "penguin", Path: path(i)})
				return err
			}
			var err error
			n := 0
			for ; err == nil && n < 1000; n++ {
				err = add(n)
			}
			if err == nil || !strings.Contains(err.Error(), "watches") {
				t.Errorf("%d watches: %v", n, err)
			}
			if err := add(0); err != nil {
				t.Error("one that is there already:", err)
			}
		})
	}
}
