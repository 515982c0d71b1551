package cicerone_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// startLxd asks for the container manager, and wants that answer.
func startLxd(t *testing.T, s *cicerone.Service, want pb.StartLxdResponse_Status) {
	t.Helper()
	r, err := s.StartLxd(t.Context(), subject(), &pb.StartLxdRequest{VmName: "termina"})
	if err != nil || r.Status != want {
		t.Fatalf("StartLxd: %v, %v", r, err)
	}
}

// lxd wants the next signal to be that one of the container manager.
func (w *world) lxd(status pb.StartLxdProgressSignal_Status, why string) {
	w.t.Helper()
	g := next[*pb.StartLxdProgressSignal](w, "StartLxdProgress")
	if g.Status != status || g.VmName != "termina" || g.OwnerId != "4711" || !strings.Contains(g.FailureReason, why) || why == "" && g.FailureReason != "" {
		w.t.Errorf("StartLxdProgress: %v", g)
	}
}

// Whoever is told that the container manager starts is told how that ended, once,
// whatever becomes of who does it.
func TestStartOfTheContainerManagerEnds(t *testing.T) {
	report := func(t *testing.T, m *machine, status tpb.StartLxdProgress_Status) {
		t.Helper()
		must(t)(m.tremplin.UpdateStartLxdStatus(t.Context(), &tpb.StartLxdProgress{Status: status}))
	}
	const starting, started, failed = pb.StartLxdProgressSignal_STARTING, pb.StartLxdProgressSignal_STARTED, pb.StartLxdProgressSignal_FAILED
	for name, c := range map[string]struct {
		change []func(*cicerone.Config)
		play   func(*testing.T, *world, *cicerone.Service, *machine, *fakeTremplin)
	}{
		"the VM stops": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			must(t)(s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}))
			w.lxd(failed, "stopped")
		}},
		"the VM stops, and nobody has asked": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			report(t, m, tpb.StartLxdProgress_STARTING)
			w.lxd(starting, "")
			report(t, m, tpb.StartLxdProgress_RECOVERING)
			w.lxd(pb.StartLxdProgressSignal_RECOVERING, "")
			must(t)(s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}))
			w.lxd(failed, "stopped")
		}},
		"tremplin is started anew": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
			w.lxd(failed, "started anew")
			next[*pb.TremplinStartedSignal](w, "TremplinStarted")
			report(t, m, tpb.StartLxdProgress_STARTED) // the one before had said so
			report(t, m, tpb.StartLxdProgress_STARTING)
			w.lxd(starting, "")
			report(t, m, tpb.StartLxdProgress_STARTED)
			w.lxd(started, "")
		}},
		"its word is lost": {[]func(*cicerone.Config){looksOften}, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			f.set(func() { f.lxd = tpb.StartLxdResponse_ALREADY_RUNNING })
			w.lxd(started, "")
			report(t, m, tpb.StartLxdProgress_STARTED) // it was late only
		}},
		"its word is repeated, as the answer took too long": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			release := cicerone.HoldSaves(s, 33)
			ctx, cancel := context.WithCancel(t.Context())
			answered := make(chan error, 1)
			go func() {
				_, err := m.tremplin.UpdateStartLxdStatus(ctx, &tpb.StartLxdProgress{Status: tpb.StartLxdProgress_STARTED})
				answered <- err
			}()
			w.lxd(started, "")
			cancel()
			<-answered
			release()
			report(t, m, tpb.StartLxdProgress_STARTED)
		}},
		"who began to ask goes away": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			asked, hold := f.holdLxd()
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			ask := func(ctx context.Context, answer chan<- error) {
				r, err := s.StartLxd(ctx, subject(), &pb.StartLxdRequest{VmName: "termina"})
				if err == nil && r.Status != pb.StartLxdResponse_STARTING {
					err = errors.New(r.String())
				}
				answer <- err
			}
			go ask(ctx, first)
			<-asked
			go ask(t.Context(), second)
			<-asked
			cancel()
			if err := <-first; err == nil {
				t.Error("the first one is answered")
			}
			close(hold)
			if err := <-second; err != nil {
				t.Error(err)
			}
			must(t)(s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}))
			w.lxd(failed, "stopped")
		}},
		"the service is started anew": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			s.Close()
			m.halt()
			s = w.serve()
			w.lxd(failed, "stopped while")
		}},
		"it does not begin": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			f.set(func() { f.lxd = tpb.StartLxdResponse_FAILED })
			startLxd(t, s, pb.StartLxdResponse_FAILED)
			f.set(func() { f.lxd = tpb.StartLxdResponse_ALREADY_RUNNING })
			startLxd(t, s, pb.StartLxdResponse_ALREADY_RUNNING)
			must(t)(s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}))
		}},
		"it has ended, and the VM stops": {nil, func(t *testing.T, w *world, s *cicerone.Service, m *machine, f *fakeTremplin) {
			startLxd(t, s, pb.StartLxdResponse_STARTING)
			report(t, m, tpb.StartLxdProgress_STARTED)
			w.lxd(started, "")
			must(t)(s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve(c.change...)
			m, f := w.up(s, "termina", 33)
			f.set(func() { f.lxd = tpb.StartLxdResponse_STARTING })
			c.play(t, w, s, m, f)
			w.quiet()
		})
	}
}
