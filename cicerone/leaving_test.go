package cicerone_test

import (
	"sync"
	"testing"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// A container that is on its way down runs for tremplin when its agent has
// gone: its start waits for the end of that.
func TestStartOfAContainerThatGoesDown(t *testing.T) {
	for name, c := range map[string]struct {
		then   func(m *machine, f *fakeTremplin, token string)
		status pb.StartLxdContainerResponse_Status
	}{
		"and tremplin says so": {func(m *machine, f *fakeTremplin, _ string) {
			f.set(func() { f.start = tpb.StartContainerResponse_STARTING })
			must(t)(m.tremplin.ContainerShutdown(t.Context(), &tpb.ContainerShutdownInfo{ContainerName: "penguin"}))
		}, pb.StartLxdContainerResponse_STARTED},
		"and tremplin's word is lost": {func(m *machine, f *fakeTremplin, _ string) {
			f.set(func() { f.start, f.info = tpb.StartContainerResponse_STARTING, tpb.GetContainerInfoResponse_STOPPED })
		}, pb.StartLxdContainerResponse_STARTED},
		"but only its agent did": {func(m *machine, f *fakeTremplin, token string) {
			must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10000}))
			next[*pb.ContainerStartedSignal](m.w, "ContainerStarted")
		}, pb.StartLxdContainerResponse_RUNNING},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve()
			m, f := w.up(s, "termina", 33)
			token, _ := m.running(s, "penguin", 10000)
			must(t)(m.container.ContainerShutdown(t.Context(), &cpb.ContainerShutdownInfo{Token: token}))
			next[*pb.ContainerShutdownSignal](w, "ContainerShutdown")

			f.set(func() { f.start = tpb.StartContainerResponse_RUNNING })
			var resp *pb.StartLxdContainerResponse
			var err error
			var start sync.WaitGroup
			start.Go(func() {
				resp, err = s.StartLxdContainer(t.Context(), subject(), &pb.StartLxdContainerRequest{VmName: "termina"})
			})
			eventually(t, "tremplin is asked to start", func() bool { return last[*tpb.StartContainerRequest](f) != nil })
			first := last[*tpb.StartContainerRequest](f)
			c.then(m, f, token)
			if c.status == pb.StartLxdContainerResponse_STARTED {
				eventually(t, "tremplin is asked again", func() bool { return last[*tpb.StartContainerRequest](f) != first })
				must(t)(m.tremplin.UpdateStartStatus(t.Context(), &tpb.ContainerStartProgress{ContainerName: "penguin", Status: tpb.ContainerStartProgress_STARTED}))
				if g := next[*pb.LxdContainerStartingSignal](w, "LxdContainerStarting"); g.Status != pb.LxdContainerStartingSignal_STARTED {
					t.Errorf("%v", g)
				}
			}
			start.Wait()
			if err != nil || resp.Status != c.status {
				t.Fatalf("%v, %v; want %v", resp, err, c.status)
			}
			if c.status == pb.StartLxdContainerResponse_STARTED {
				f.set(func() { f.info = tpb.GetContainerInfoResponse_RUNNING })
				// It has the token of this start.
				again := last[*tpb.StartContainerRequest](f).Token
				must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: again, GarconPort: 10000}))
				if g := next[*pb.ContainerStartedSignal](w, "ContainerStarted"); g.ContainerToken != again || again == token {
					t.Errorf("%v", g)
				}
			}
			if !w.isRunning(s, "termina", "") {
				t.Error("it does not run")
			}
			w.quiet()
		})
	}
}
