package cicerone_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// Answers of tremplin to a start.
const (
	starting = tpb.StartContainerResponse_STARTING
	runs     = tpb.StartContainerResponse_RUNNING
	refused  = tpb.StartContainerResponse_FAILED
)

// A tokenTest is a container that is started, and what its agent is known by.
type tokenTest struct {
	*testing.T
	w *world
	s *cicerone.Service
	m *machine
	f *fakeTremplin
}

// start asks for a start, which tremplin answers so, and returns its token.
func (x *tokenTest) start(answer tpb.StartContainerResponse_Status) string {
	x.Helper()
	x.f.set(func() { x.f.start = answer })
	must(x)(x.s.StartLxdContainer(x.Context(), subject(), &pb.StartLxdContainerRequest{VmName: "termina", Async: true}))
	return last[*tpb.StartContainerRequest](x.f).Token
}

func (x *tokenTest) startEnds(st tpb.ContainerStartProgress_Status) {
	x.Helper()
	must(x)(x.m.tremplin.UpdateStartStatus(x.Context(), &tpb.ContainerStartProgress{ContainerName: "penguin", Status: st}))
}

func (x *tokenTest) started() { x.Helper(); x.startEnds(tpb.ContainerStartProgress_STARTED) }

// lost has the end of a start never heard.
func (x *tokenTest) lost() {
	x.Helper()
	must(x)(x.m.tremplin.TremplinReady(x.Context(), &tpb.TremplinStartupInfo{}))
}

// stopped has the container stop, as tremplin tells.
func (x *tokenTest) stopped() {
	x.Helper()
	must(x)(x.m.tremplin.ContainerShutdown(x.Context(), &tpb.ContainerShutdownInfo{ContainerName: "penguin"}))
}

func (x *tokenTest) handedOut() string {
	x.Helper()
	r, err := x.s.GetContainerToken(x.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina", ContainerName: "penguin"})
	if err != nil {
		x.Fatal(err)
	}
	return r.ContainerToken
}

func (x *tokenTest) ready(token string) error {
	_, err := x.m.container.ContainerReady(x.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10000})
	return err
}

func (x *tokenTest) isKnown(token string) {
	x.Helper()
	if err := x.ready(token); err != nil {
		x.Errorf("the agent with the token that it was started with: %v", err)
	}
	if !x.w.isRunning(x.s, "termina", "penguin") {
		x.Error("the container does not run")
	}
}

func (x *tokenTest) isRefused(token string) {
	x.Helper()
	if err := x.ready(token); status.Code(err) != codes.FailedPrecondition {
		x.Errorf("a token that no container has: %v", err)
	}
}

// The agent is known by the token that its container was really started with,
// whoever has asked for a start since, and by no other.
func TestTokensOfStarts(t *testing.T) {
	for name, test := range map[string]func(x *tokenTest){
		"it runs already": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.start(runs)
			x.isKnown(token)
		},
		"it runs already, and its start was not heard of": func(x *tokenTest) {
			token := x.start(starting)
			x.lost()
			x.start(runs)
			x.isKnown(token)
		},
		"it runs already, and its agent has reported": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.isKnown(token)
			x.isRefused(x.start(runs))
			must(x)(x.m.container.LowDiskSpaceTriggered(x.Context(), &cpb.LowDiskSpaceTriggeredInfo{Token: token}))
			x.isKnown(token)
		},
		"it runs already, with a second token, and its start was not heard of": func(x *tokenTest) {
			before := x.start(starting)
			x.started()
			x.isKnown(before)
			x.stopped()
			token := x.start(starting)
			x.lost()
			x.start(runs)
			x.isKnown(token)
			x.isRefused(before)
		},
		"the first start goes on in the VM": func(x *tokenTest) {
			token := x.start(starting)
			x.lost()
			x.start(starting)
			x.started()
			x.isKnown(token)
		},
		"the service was started anew in the middle": func(x *tokenTest) {
			token := x.start(starting)
			x.s.Close()
			x.s = x.w.serve()
			x.lost()
			x.start(runs)
			x.isKnown(token)
		},
		"one was handed out meanwhile": func(x *tokenTest) {
			token := x.start(starting)
			x.handedOut()
			x.started()
			x.isKnown(token)
			// The next one is for the next start.
			again := x.handedOut()
			x.stopped()
			x.isKnown(again)
			x.isRefused(token)
		},
		"it was handed out, and the container started with it": func(x *tokenTest) {
			token := x.handedOut()
			x.start(runs)
			x.isKnown(token)
		},
		"it restarts by itself": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.stopped()
			x.isKnown(token)
			x.stopped()
			x.isRefused(x.start(runs))
			x.isKnown(token)
		},
		"the start failed": func(x *tokenTest) {
			token := x.start(starting)
			x.startEnds(tpb.ContainerStartProgress_FAILED)
			x.isRefused(token)
		},
		"the start was cancelled": func(x *tokenTest) {
			token := x.start(starting)
			x.startEnds(tpb.ContainerStartProgress_CANCELLED)
			x.isRefused(token)
		},
		"the start was refused": func(x *tokenTest) {
			x.isRefused(x.start(refused))
		},
		"the second start was refused": func(x *tokenTest) {
			token := x.start(starting)
			x.lost()
			x.start(refused)
			x.isKnown(token)
		},
		"it has stopped since": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.stopped()
			again := x.start(starting)
			x.started()
			x.isRefused(token)
			x.isKnown(again)
		},
		"its agent had reported, and it has stopped since": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.isKnown(token)
			x.stopped()
			again := x.start(starting)
			x.started()
			x.isRefused(token)
			x.isKnown(again)
		},
		"its agent had left, and of its stop was not heard": func(x *tokenTest) {
			token := x.start(starting)
			x.started()
			x.isKnown(token)
			must(x)(x.m.container.ContainerShutdown(x.Context(), &cpb.ContainerShutdownInfo{Token: token}))
			again := x.start(starting)
			x.started()
			x.isRefused(token)
			x.start(runs) // it does not go down any more
			x.isKnown(again)
		},
		"it has stopped since, and its start was not heard of": func(x *tokenTest) {
			token := x.start(starting)
			x.lost()
			x.stopped()
			again := x.start(starting)
			x.started()
			x.isRefused(token)
			x.isKnown(again)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve()
			m, f := w.up(s, "termina", 33)
			m.garcon(10000)
			test(&tokenTest{T: t, w: w, s: s, m: m, f: f})
		})
	}
}
