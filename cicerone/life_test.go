package cicerone_test

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// From a VM that has just started to a container that is deleted.
func TestLifeOfAContainer(t *testing.T) {
	w := newWorld(t)
	s := w.serve(func(c *cicerone.Config) { c.Timezone = func() (string, error) { return "Etc/UTC", nil } })
	m, f := w.up(s, "termina", 33)
	eventually(t, "vm_concierge knows that tremplin is ready", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.ready) == 1 && w.ready[0] == 33
	})

	created, err := s.CreateLxdContainer(t.Context(), subject(), &pb.CreateLxdContainerRequest{VmName: "termina"})
	if err != nil || created.Status != pb.CreateLxdContainerResponse_CREATING {
		t.Fatalf("%v, %v", created, err)
	}
	if r := last[*tpb.CreateContainerRequest](f); r.ContainerName != "penguin" || r.ImageServer != "" || r.ImageAlias != "" {
		t.Errorf("asked for %v", r)
	}
	must(t)(m.tremplin.UpdateCreateStatus(t.Context(), &tpb.ContainerCreationProgress{ContainerName: "penguin", Status: tpb.ContainerCreationProgress_DOWNLOADING, DownloadProgress: 150}))
	if g := next[*pb.LxdContainerDownloadingSignal](w, "LxdContainerDownloading"); g.DownloadProgress != 100 || g.OwnerId != "4711" || g.VmName != "termina" {
		t.Errorf("%v", g)
	}
	for range 2 { // a report that is repeated is told once
		must(t)(m.tremplin.UpdateCreateStatus(t.Context(), &tpb.ContainerCreationProgress{ContainerName: "penguin", Status: tpb.ContainerCreationProgress_CREATED}))
	}
	if g := next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated"); g.Status != pb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("%v", g)
	}
	// Nobody asked for this one.
	must(t)(m.tremplin.UpdateCreateStatus(t.Context(), &tpb.ContainerCreationProgress{ContainerName: "other", Status: tpb.ContainerCreationProgress_CREATED}))

	user, err := s.SetUpLxdContainerUser(t.Context(), subject(), &pb.SetUpLxdContainerUserRequest{VmName: "termina", ContainerUsername: "ada"})
	if err != nil || user.Status != pb.SetUpLxdContainerUserResponse_SUCCESS || user.ContainerUsername != "ada" {
		t.Fatalf("%v, %v", user, err)
	}

	var started *pb.StartLxdContainerResponse
	var starts sync.WaitGroup
	starts.Go(func() {
		started, err = s.StartLxdContainer(t.Context(), subject(), &pb.StartLxdContainerRequest{VmName: "termina", ContainerName: "penguin"})
	})
	eventually(t, "tremplin is asked to start", func() bool { return last[*tpb.StartContainerRequest](f) != nil })
	ask := last[*tpb.StartContainerRequest](f)
	if len(ask.Token) != 36 || ask.HostPublicKey != "key of penguin" || ask.ContainerPrivateKey != "host key" {
		t.Errorf("asked for %v", ask)
	}
	must(t)(m.tremplin.UpdateStartStatus(t.Context(), &tpb.ContainerStartProgress{ContainerName: "penguin", Status: tpb.ContainerStartProgress_STARTING}))
	next[*pb.LxdContainerStartingSignal](w, "LxdContainerStarting")
	must(t)(m.tremplin.UpdateStartStatus(t.Context(), &tpb.ContainerStartProgress{ContainerName: "penguin", Status: tpb.ContainerStartProgress_STARTED}))
	if g := next[*pb.LxdContainerStartingSignal](w, "LxdContainerStarting"); g.Status != pb.LxdContainerStartingSignal_STARTED || g.OsRelease.GetId() != "debian" {
		t.Errorf("%v", g)
	}
	starts.Wait()
	if err != nil || started.Status != pb.StartLxdContainerResponse_STARTED || started.OsRelease.GetId() != "debian" {
		t.Fatalf("%v, %v", started, err)
	}
	if w.isRunning(s, "termina", "") {
		t.Error("it runs before its agent has reported")
	}

	m.garcon(10000)
	must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: ask.Token, GarconPort: 10000}))
	want := &pb.ContainerStartedSignal{VmName: "termina", ContainerName: "penguin", OwnerId: "4711", ContainerUsername: "ada",
		ContainerHomedir: "/home/ada", Ipv4Address: "100.115.192.5", SftpVsockPort: 77, ContainerToken: ask.Token}
	if g := next[*pb.ContainerStartedSignal](w, "ContainerStarted"); !proto.Equal(g, want) {
		t.Errorf("%v", g)
	}
	if !w.isRunning(s, "termina", "") {
		t.Error("it does not run")
	}
	eventually(t, "the time zone is sent", func() bool {
		r := last[*tpb.SetTimezoneRequest](f)
		return r.GetTimezoneName() == "Etc/UTC" && r.GetPosixTzString() == "UTC0"
	})
	list, err := s.ListRunningContainers(t.Context(), subject(), &pb.ListRunningContainersRequest{})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].ContainerToken != ask.Token || list.Containers[0].OsRelease.GetId() != "debian" {
		t.Errorf("%v, %v", list, err)
	}
	must(t)(m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: ask.Token,
		Application: []*cpb.Application{{DesktopFileId: "gimp", Exec: "gimp %U", Keywords: &cpb.Application_LocaleStrings{Values: []*cpb.Application_LocaleStrings_StringsWithLocale{{Locale: "de", Value: []string{"Bild"}}}}}}}))
	apps, err := s.ListApplications(t.Context(), subject(), "termina", "penguin")
	if err != nil || len(apps.Apps) != 1 || apps.Apps[0].Exec != "gimp %U" || apps.Apps[0].Keywords.Values[0].Value[0] != "Bild" || len(w.lists) != 1 {
		t.Errorf("%v, %v", apps, err)
	}
	icons, err := s.GetContainerAppIcon(t.Context(), subject(), &pb.ContainerAppIconRequest{VmName: "termina", DesktopFileIds: []string{"gimp"}})
	if err != nil || len(icons.Icons) != 1 || string(icons.Icons[0].Icon) != "gimp" || icons.Icons[0].Format != pb.DesktopIcon_SVG {
		t.Errorf("%v, %v", icons, err)
	}

	stopped, err := s.StopLxdContainer(t.Context(), subject(), &pb.StopLxdContainerRequest{VmName: "termina", ContainerName: "penguin"})
	if err != nil || stopped.Status != pb.StopLxdContainerResponse_STOPPING {
		t.Fatalf("%v, %v", stopped, err)
	}
	// The agent says that it goes, and then tremplin that the container has.
	must(t)(m.container.ContainerShutdown(t.Context(), &cpb.ContainerShutdownInfo{Token: ask.Token}))
	next[*pb.ContainerShutdownSignal](w, "ContainerShutdown")
	must(t)(m.tremplin.ContainerShutdown(t.Context(), &tpb.ContainerShutdownInfo{ContainerName: "penguin"}))
	must(t)(m.tremplin.UpdateStopStatus(t.Context(), &tpb.ContainerStopProgress{ContainerName: "penguin", Status: tpb.ContainerStopProgress_STOPPED}))
	if g := next[*pb.LxdContainerStoppingSignal](w, "LxdContainerStopping"); g.Status != pb.LxdContainerStoppingSignal_STOPPED {
		t.Errorf("%v", g)
	}
	deleted, err := s.DeleteLxdContainer(t.Context(), subject(), &pb.DeleteLxdContainerRequest{VmName: "termina", ContainerName: "penguin"})
	if err != nil || deleted.Status != pb.DeleteLxdContainerResponse_DELETING {
		t.Fatalf("%v, %v", deleted, err)
	}
	must(t)(m.tremplin.UpdateDeletionStatus(t.Context(), &tpb.ContainerDeletionProgress{ContainerName: "penguin", Status: tpb.ContainerDeletionProgress_DELETED}))
	next[*pb.LxdContainerDeletedSignal](w, "LxdContainerDeleted")
	if _, err := m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: ask.Token, GarconPort: 10000}); err == nil {
		t.Error("the token of a container that was deleted is accepted")
	}
	w.quiet()
}

// The container manager is started first, and waited for.
func TestContainerManagerIsStarted(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	f.set(func() { f.lxd = tpb.StartLxdResponse_STARTING })
	var calls sync.WaitGroup
	calls.Go(func() {
		r, err := s.CreateLxdContainer(t.Context(), subject(), &pb.CreateLxdContainerRequest{VmName: "termina", ContainerName: "one"})
		if err != nil || r.Status != pb.CreateLxdContainerResponse_CREATING {
			t.Errorf("%v, %v", r, err)
		}
	})
	eventually(t, "the container manager is asked to start", func() bool { return last[*tpb.StartLxdRequest](f) != nil })
	must(t)(m.tremplin.UpdateStartLxdStatus(t.Context(), &tpb.StartLxdProgress{Status: tpb.StartLxdProgress_STARTING}))
	if last[*tpb.CreateContainerRequest](f) != nil {
		t.Error("a container is created before the container manager runs")
	}
	f.set(func() { f.lxd = tpb.StartLxdResponse_ALREADY_RUNNING })
	must(t)(m.tremplin.UpdateStartLxdStatus(t.Context(), &tpb.StartLxdProgress{Status: tpb.StartLxdProgress_STARTED}))
	calls.Wait()
	for _, st := range []pb.StartLxdProgressSignal_Status{pb.StartLxdProgressSignal_STARTING, pb.StartLxdProgressSignal_STARTED} {
		if g := next[*pb.StartLxdProgressSignal](w, "StartLxdProgress"); g.Status != st {
			t.Errorf("%v", g)
		}
	}
	if r := last[*tpb.CreateContainerRequest](f); r.GetContainerName() != "one" {
		t.Errorf("%v", r)
	}
	// The other one fails.
	f.set(func() { f.lxd = tpb.StartLxdResponse_STARTING; f.calls = nil })
	calls.Go(func() {
		_, err := s.CreateLxdContainer(t.Context(), subject(), &pb.CreateLxdContainerRequest{VmName: "termina", ContainerName: "two"})
		if err == nil || !strings.Contains(err.Error(), "no disk") {
			t.Errorf("%v", err)
		}
	})
	eventually(t, "the container manager is asked to start", func() bool { return last[*tpb.StartLxdRequest](f) != nil })
	for _, st := range []tpb.StartLxdProgress_Status{tpb.StartLxdProgress_STARTING, tpb.StartLxdProgress_FAILED} {
		must(t)(m.tremplin.UpdateStartLxdStatus(t.Context(), &tpb.StartLxdProgress{Status: st, FailureReason: "no disk"}))
	}
	calls.Wait()
	next[*pb.StartLxdProgressSignal](w, "StartLxdProgress")
	next[*pb.StartLxdProgressSignal](w, "StartLxdProgress")
	w.quiet()
}

// What is refused or exists is the answer, and no signal follows.
func TestAnswersWithoutSignals(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	_, f := w.up(s, "termina", 33)
	create := func(r *pb.CreateLxdContainerRequest) (*pb.CreateLxdContainerResponse, error) {
		return s.CreateLxdContainer(t.Context(), subject(), r)
	}
	if r, err := create(&pb.CreateLxdContainerRequest{VmName: "nobody"}); err != nil || r.Status != pb.CreateLxdContainerResponse_UNKNOWN || r.FailureReason == "" {
		t.Errorf("%v, %v", r, err)
	}
	f.set(func() { f.create = tpb.CreateContainerResponse_EXISTS })
	if r, err := create(&pb.CreateLxdContainerRequest{VmName: "termina"}); err != nil || r.Status != pb.CreateLxdContainerResponse_EXISTS {
		t.Errorf("%v, %v", r, err)
	}
	f.set(func() { f.create = tpb.CreateContainerResponse_FAILED })
	if r, err := create(&pb.CreateLxdContainerRequest{VmName: "termina"}); err == nil || !strings.Contains(err.Error(), "no room ") {
		t.Errorf("%v, %v", r, err)
	}
	for name, r := range map[string]*pb.CreateLxdContainerRequest{
		"half a server": {VmName: "termina", ImageServer: "https://example.org"},
		"half a pair":   {VmName: "termina", RootfsPath: "/x"},
		"both":          {VmName: "termina", ImageServer: "https://example.org", ImageAlias: "a", RootfsPath: "/x", MetadataPath: "/y"},
		"a name":        {VmName: "termina", ContainerName: "Not/A-Name"},
	} {
		if _, err := create(r); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	f.set(func() { f.start = tpb.StartContainerResponse_RUNNING })
	if r, err := s.StartLxdContainer(t.Context(), subject(), &pb.StartLxdContainerRequest{VmName: "termina"}); err != nil || r.Status != pb.StartLxdContainerResponse_RUNNING {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.StopLxdContainer(t.Context(), subject(), &pb.StopLxdContainerRequest{VmName: "termina", ContainerName: "unknown"}); err != nil || r.Status != pb.StopLxdContainerResponse_STOPPED {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.StopLxdContainer(t.Context(), subject(), &pb.StopLxdContainerRequest{VmName: "termina"}); err == nil {
		t.Error("no name is a container")
	}
	if r, err := s.GetGarconSessionInfo(t.Context(), subject(), &pb.GetGarconSessionInfoRequest{VmName: "termina", ContainerName: "penguin"}); err != nil || r.Status != pb.GetGarconSessionInfoResponse_NOT_FOUND {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.ExportLxdContainer(t.Context(), subject(), &pb.ExportLxdContainerRequest{VmName: "termina", ContainerName: "penguin", ExportPath: "transfer:0"}); err == nil {
		t.Errorf("a caller names a stream: %v", r)
	}
	w.quiet()
}

// A VM without containers is one.
func TestVMWithoutContainers(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m := w.boot("bru", 40, func(v *cicerone.VM) { v.Containers, v.Token = false, "11111111-2222-3333-4444-555555555555" })
	m.announce(s)
	if r, err := s.CreateLxdContainer(t.Context(), subject(), &pb.CreateLxdContainerRequest{VmName: "bru"}); err != nil || r.Status != pb.CreateLxdContainerResponse_EXISTS {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.StartLxd(t.Context(), subject(), &pb.StartLxdRequest{VmName: "bru"}); err != nil || r.Status != pb.StartLxdResponse_ALREADY_RUNNING {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "bru"}); err != nil || r.ContainerToken != "" {
		t.Errorf("%v, %v", r, err)
	}
	m.garcon(10001)
	must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: m.info.Token, GarconPort: 10001}))
	if g := next[*pb.ContainerStartedSignal](w, "ContainerStarted"); g.ContainerName != "penguin" || g.Ipv4Address != "100.115.92.2" {
		t.Errorf("%v", g)
	}
	if !w.isRunning(s, "bru", "penguin") {
		t.Error("it does not run")
	}
}
