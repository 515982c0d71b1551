package cicerone_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// Shells, watches, time zones and what people look at.
func TestSmallMethods(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)

	if r, err := s.LaunchVshd(t.Context(), subject(), &pb.LaunchVshdRequest{VmName: "termina", Port: 5000}); err != nil || !r.Success || r.Cid != 33 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.LaunchVshd(t.Context(), subject(), &pb.LaunchVshdRequest{VmName: "termina", Port: 1}); err != nil || r.Success || r.FailureReason != "no shell" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.LaunchVshd(t.Context(), subject(), &pb.LaunchVshdRequest{VmName: "termina"}); err == nil {
		t.Error("port 0 is dialled")
	}
	session := func(shell int32) error {
		_, err := s.RegisterVshSession(t.Context(), subject(), &pb.RegisterVshSessionRequest{VmName: "termina", ContainerName: "penguin", HostVshPid: 7, ContainerShellPid: shell})
		return err
	}
	ask := func() (*pb.GetVshSessionResponse, error) {
		return s.GetVshSession(t.Context(), subject(), &pb.GetVshSessionRequest{VmName: "termina", ContainerName: "penguin", HostVshPid: 7})
	}
	if err := session(88); err != nil {
		t.Error(err)
	}
	if r, err := ask(); err != nil || !r.Success || r.ContainerShellPid != 88 {
		t.Errorf("%v, %v", r, err)
	}
	if err := session(0); err != nil {
		t.Error(err)
	}
	if _, err := ask(); err == nil {
		t.Error("a session that has ended is known")
	}

	for path, ok := range map[string]bool{"Documents": true, "a..b": true, "": false, "/etc": false, "a/../..": false} {
		r, err := s.AddFileWatch(t.Context(), subject(), &pb.AddFileWatchRequest{VmName: "termina", ContainerName: "penguin", Path: path})
		if (err == nil) != ok || ok && r.Status != pb.AddFileWatchResponse_SUCCEEDED {
			t.Errorf("%q: %v, %v", path, r, err)
		}
	}
	must(t)(m.container.FileWatchTriggered(t.Context(), &cpb.FileWatchTriggeredInfo{Token: token, Path: "Documents"}))
	if g := next[*pb.FileWatchTriggeredSignal](w, "FileWatchTriggered"); g.Path != "Documents" {
		t.Errorf("%v", g)
	}
	must(t)(m.container.PendingUpdateApplicationListCalls(t.Context(), &cpb.PendingAppListUpdateCount{Token: token, Count: 2}))
	if g := next[*pb.PendingAppListUpdatesSignal](w, "PendingAppListUpdates"); g.Count != 2 {
		t.Errorf("%v", g)
	}

	if r, err := s.SetTimezone(t.Context(), subject(), &pb.SetTimezoneRequest{TimezoneName: "Etc/UTC"}); err != nil || r.Successes != 1 || last[*tpb.SetTimezoneRequest](f).GetPosixTzString() != "UTC0" {
		t.Errorf("%v, %v", r, err)
	}
	for _, bad := range []string{"", "../../etc/passwd", "Etc/../Etc/UTC", "Nowhere/AtAll"} {
		if _, err := s.SetTimezone(t.Context(), subject(), &pb.SetTimezoneRequest{TimezoneName: bad}); err == nil {
			t.Errorf("time zone %q is set", bad)
		}
	}
	list, err := s.ListContainers(t.Context(), subject(), "termina")
	if err != nil || len(list) != 2 || list[0]["name"] != "penguin" || list[0]["user"] != "ada" || list[1]["name"] != "spare" {
		t.Errorf("%v, %v", list, err)
	}
	r, err := s.GetDebugInformation(t.Context(), subject(), &pb.GetDebugInformationRequest{})
	if err != nil || !strings.Contains(r.DebugInformation, "VM termina") || !strings.Contains(r.DebugInformation, "Incus: 6.0") || strings.Contains(r.DebugInformation, "\x1b") {
		t.Errorf("%v, %v", r, err)
	}
	// Another user sees nothing of it.
	stranger := subject()
	stranger.Caller.UID, stranger.Owner.UID = 1, 1
	if r, err := s.GetDebugInformation(t.Context(), stranger, &pb.GetDebugInformationRequest{}); err != nil || r.DebugInformation != "" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.ListRunningContainers(t.Context(), stranger, &pb.ListRunningContainersRequest{}); err != nil || len(r.Containers) != 0 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.ListApplications(t.Context(), stranger, "termina", "penguin"); err == nil {
		t.Error("a stranger reads applications")
	}
	w.quiet()
}

// When the host has another time zone, the containers that run get it too: all
// of a VM, and of one that does not answer now as soon as it does.
func TestTimezoneOfTheHost(t *testing.T) {
	var zone atomic.Value
	zone.Store("Etc/UTC")
	w := newWorld(t)
	s := w.serve(looksOften, func(c *cicerone.Config) { c.Timezone = func() (string, error) { return zone.Load().(string), nil } })
	_, f := w.up(s, "termina", 33)
	_, slow := w.up(s, "slow", 34)
	slow.set(func() { slow.zoneErr = errors.New("not now") })
	zone.Store("Asia/Tokyo")
	s.TimezoneChanged()
	has := func(f *fakeTremplin) func() bool {
		return func() bool {
			r := last[*tpb.SetTimezoneRequest](f)
			return r.GetTimezoneName() == zone.Load() && r.GetPosixTzString() == "JST-9" && len(r.GetContainerNames()) == 0
		}
	}
	eventually(t, "the new time zone", has(f))
	slow.set(func() { slow.zoneErr = nil })
	eventually(t, "the new time zone, later", has(slow))
	w.quiet()
}

// A tremplin that was ready before there was a service to hear it is found,
// and its own word after that is of the same start.
func TestTremplinIsFound(t *testing.T) {
	w := newWorld(t)
	m := w.boot("termina", 33)
	newTremplin(m)
	s := w.serve()
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
	m.create(s, "penguin")
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	w.quiet()
	must(t)(m.tremplin.UpdateCreateStatus(t.Context(), &tpb.ContainerCreationProgress{ContainerName: "penguin", Status: tpb.ContainerCreationProgress_CREATED}))
	next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated")
	eventually(t, "vm_concierge knows", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.ready) == 1
	})
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
}
