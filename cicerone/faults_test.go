package cicerone_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/auberge-vm/auberge/cicerone"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// install begins an installation in a container.
func (m *machine) install(s *cicerone.Service, container string) {
	m.w.t.Helper()
	r, err := s.InstallLinuxPackage(m.w.t.Context(), subject(), &pb.InstallLinuxPackageRequest{VmName: m.info.Name, ContainerName: container, FilePath: "/tmp/a.deb", CommandUuid: "u"})
	if err != nil || r.Status != pb.InstallLinuxPackageResponse_STARTED {
		m.w.t.Fatalf("%v, %v", r, err)
	}
}

// create begins to create a container.
func (m *machine) create(s *cicerone.Service, container string) {
	m.w.t.Helper()
	r, err := s.CreateLxdContainer(m.w.t.Context(), subject(), &pb.CreateLxdContainerRequest{VmName: m.info.Name, ContainerName: container})
	if err != nil || r.Status != pb.CreateLxdContainerResponse_CREATING {
		m.w.t.Fatalf("%v, %v", r, err)
	}
}

// A VM that stops ends its containers and operations, each with one signal.
func TestVMStops(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	must(t)(m.container.InhibitScreensaver(t.Context(), &cpb.InhibitScreensaverInfo{Token: token, Cookie: 5, Client: "vlc"}))
	next[*pb.InhibitScreensaverSignal](w, "InhibitScreensaver")
	m.install(s, "penguin")
	m.create(s, "other")
	if _, err := s.NotifyVmStopping(t.Context(), subject(), &pb.NotifyVmStoppingRequest{VmName: "termina"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // both the concierge and a look at its list may say so
		if _, err := s.NotifyVmStopped(t.Context(), subject(), &pb.NotifyVmStoppedRequest{VmName: "termina"}); err != nil {
			t.Fatal(err)
		}
	}
	if g := next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated"); g.Status != pb.LxdContainerCreatedSignal_FAILED || g.ContainerName != "other" {
		t.Errorf("%v", g)
	}
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_FAILED || g.CommandUuid != "u" {
		t.Errorf("%v", g)
	}
	if g := next[*pb.UninhibitScreensaverSignal](w, "UninhibitScreensaver"); g.Cookie != 5 {
		t.Errorf("%v", g)
	}
	next[*pb.ContainerShutdownSignal](w, "ContainerShutdown")
	if w.isRunning(s, "termina", "penguin") {
		t.Error("it runs")
	}
	m.halt()
	if err := s.Resync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.quiet()
}

// What a service knew, the next one knows: containers and their tokens, and
// operations, whose end is told once.
func TestServiceIsStartedAnew(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	_, stopOther := m.running(s, "other", 10001)
	gone, _ := w.up(s, "gone", 34)
	gone.running(s, "penguin", 10000)
	gone.create(s, "new")
	m.install(s, "penguin")
	must(t)(m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token, Application: []*cpb.Application{{DesktopFileId: "gimp"}}}))
	s.Close()
	w.quiet()
	stopOther()
	gone.halt()

	s = w.serve()
	for _, c := range []string{"created", "shutdown"} {
		switch c {
		case "created":
			if g := next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated"); g.VmName != "gone" || g.Status != pb.LxdContainerCreatedSignal_FAILED {
				t.Errorf("%v", g)
			}
		case "shutdown":
			if g := next[*pb.ContainerShutdownSignal](w, "ContainerShutdown"); g.VmName != "gone" || g.OwnerId != "4711" {
				t.Errorf("%v", g)
			}
		}
	}
	if !w.isRunning(s, "termina", "penguin") {
		t.Error("it is not known to run")
	}
	if apps, err := s.ListApplications(t.Context(), subject(), "termina", ""); err != nil || len(apps.Apps) != 1 {
		t.Errorf("%v, %v", apps, err)
	}
	// The one whose agent does not answer is found out.
	if g := next[*pb.ContainerShutdownSignal](w, "ContainerShutdown"); g.ContainerName != "other" || g.VmName != "termina" {
		t.Errorf("%v", g)
	}
	for range 2 {
		must(t)(m.container.InstallLinuxPackageProgress(t.Context(), &cpb.InstallLinuxPackageProgressInfo{Token: token, Status: cpb.InstallLinuxPackageProgressInfo_SUCCEEDED, ProgressPercent: 100}))
	}
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_SUCCEEDED || g.CommandUuid != "u" {
		t.Errorf("%v", g)
	}
	eventually(t, "vm_concierge is told again", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.ready) >= 3
	})
	s.Close()
	// And nothing is told again.
	s = w.serve()
	s.Close()
	w.quiet()
}

// While vm_concierge is away nobody can be asked, and whoever ran does so still.
func TestServiceIsStartedAnewWithoutConcierge(t *testing.T) {
	w := newWorld(t)
	s := w.serve(looksOften)
	m, _ := w.up(s, "termina", 33)
	m.running(s, "penguin", 10000)
	s.Close()
	w.mu.Lock()
	w.leaving = true
	w.mu.Unlock()
	s = w.serve(looksOften)
	eventually(t, "vm_concierge is asked again", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.missed > 1
	})
	w.quiet()
	w.mu.Lock()
	w.leaving, w.away = false, false
	w.mu.Unlock()
	if !w.isRunning(s, "termina", "") {
		t.Error("it is not known to run")
	}
	s.Close()
	w.quiet()
}

// A concierge that was away, and announces its VMs again, changes nothing;
// calls at the endpoints go on.
func TestAnnouncedAgain(t *testing.T) {
	w := newWorld(t)
	w.away = true
	s := w.serve()
	w.away = false
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	var calls sync.WaitGroup
	calls.Go(func() {
		r, err := m.container.SelectFile(t.Context(), &cpb.SelectFileRequest{Token: token})
		if err != nil || len(r.Files) != 1 {
			t.Errorf("%v, %v", r, err)
		}
	})
	d := <-w.dialogs
	m.announce(s)
	must(t)(m.container.LowDiskSpaceTriggered(t.Context(), &cpb.LowDiskSpaceTriggeredInfo{Token: token, FreeBytes: 7}))
	if g := next[*pb.LowDiskSpaceTriggeredSignal](w, "LowDiskSpaceTriggered"); g.FreeBytes != 7 || g.ContainerName != "penguin" {
		t.Errorf("%v", g)
	}
	if !w.isRunning(s, "termina", "penguin") {
		t.Error("it is forgotten")
	}
	if _, err := s.FileSelected(t.Context(), subject(), &pb.FileSelectedSignal{VmName: "termina", ContainerName: "penguin", SelectFileToken: d.SelectFileToken, Files: []string{"/a"}}); err != nil {
		t.Error(err)
	}
	calls.Wait()
	// Without a CID it is found by its name.
	if _, err := s.NotifyVmStarted(t.Context(), subject(), &pb.NotifyVmStartedRequest{VmName: "termina"}); err != nil {
		t.Error(err)
	}
	if _, err := s.NotifyVmStarted(t.Context(), subject(), &pb.NotifyVmStartedRequest{VmName: "unknown"}); err == nil || !strings.Contains(err.Error(), "without a CID") {
		t.Errorf("%v", err)
	}
	if _, err := s.NotifyVmStarted(t.Context(), subject(), &pb.NotifyVmStartedRequest{VmName: "unknown", Cid: 33}); err == nil {
		t.Error("another VM's CID is accepted")
	}
	w.quiet()
	// Another VM of the same name is another VM.
	m.halt()
	m2 := w.boot("termina", 35)
	m2.announce(s)
	next[*pb.ContainerShutdownSignal](w, "ContainerShutdown")
	if _, err := m2.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10000}); err == nil {
		t.Error("a token of the VM before is accepted")
	}
}

// Agents that are started anew have lost what they did. A container's agent is
// another one when it listens at another port.
func TestAgentsAreStartedAnew(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, stop := m.running(s, "penguin", 10000)
	other, _ := m.running(s, "other", 10007)
	for i, token := range []string{token, other} {
		for cookie := range int32(2) {
			must(t)(m.container.InhibitScreensaver(t.Context(), &cpb.InhibitScreensaverInfo{Token: token, Cookie: 10*int32(i) + cookie, Client: "vlc"}))
			next[*pb.InhibitScreensaverSignal](w, "InhibitScreensaver")
		}
	}
	m.install(s, "penguin")
	m.install(s, "other")
	m.create(s, "new")
	stop()
	m.garcon(10001)
	must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10001}))
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_FAILED || g.ContainerName != "penguin" {
		t.Errorf("%v", g)
	}
	for cookie := range uint32(2) { // nobody is left who would give them back
		if g := next[*pb.UninhibitScreensaverSignal](w, "UninhibitScreensaver"); g.Cookie != cookie || g.ContainerName != "penguin" {
			t.Errorf("%v", g)
		}
	}
	next[*pb.ContainerStartedSignal](w, "ContainerStarted")
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	if g := next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated"); g.Status != pb.LxdContainerCreatedSignal_FAILED {
		t.Errorf("%v", g)
	}
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
	m.install(s, "penguin") // the next try
	m.create(s, "new")
	w.quiet()
}

// An agent that has only lost the service, and reports again, goes on with what
// it does, and the end that it tells is the one that counts.
func TestAgentsReportAgain(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	must(t)(m.container.InhibitScreensaver(t.Context(), &cpb.InhibitScreensaverInfo{Token: token, Cookie: 5, Client: "vlc"}))
	next[*pb.InhibitScreensaverSignal](w, "InhibitScreensaver")
	m.install(s, "penguin")
	again := func() {
		t.Helper()
		must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: token, GarconPort: 10000}))
		next[*pb.ContainerStartedSignal](w, "ContainerStarted")
		w.quiet()
	}
	again()
	s.Close()
	s = w.serve()
	again()
	report := func(status cpb.InstallLinuxPackageProgressInfo_Status) {
		t.Helper()
		must(t)(m.container.InstallLinuxPackageProgress(t.Context(), &cpb.InstallLinuxPackageProgressInfo{Token: token, Status: status, CommandUuid: "u"}))
	}
	// What ended before may be told a second time.
	must(t)(m.container.InstallLinuxPackageProgress(t.Context(), &cpb.InstallLinuxPackageProgressInfo{Token: token,
		Status: cpb.InstallLinuxPackageProgressInfo_FAILED, CommandUuid: "before"}))
	report(cpb.InstallLinuxPackageProgressInfo_INSTALLING)
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_INSTALLING {
		t.Errorf("%v", g)
	}
	report(cpb.InstallLinuxPackageProgressInfo_SUCCEEDED)
	report(cpb.InstallLinuxPackageProgressInfo_SUCCEEDED) // the answer may have been lost
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_SUCCEEDED || g.CommandUuid != "u" {
		t.Errorf("%v", g)
	}
	w.quiet()
	must(t)(m.container.UninhibitScreensaver(t.Context(), &cpb.UninhibitScreensaverInfo{Token: token, Cookie: 5}))
	if g := next[*pb.UninhibitScreensaverSignal](w, "UninhibitScreensaver"); g.Cookie != 5 {
		t.Errorf("%v", g)
	}
}

// A busyGarcon takes its time to begin an installation.
type busyGarcon struct {
	fakeGarcon
	asked, goOn chan struct{}
}

func (g busyGarcon) InstallLinuxPackage(ctx context.Context, _ *cpb.InstallLinuxPackageRequest) (*cpb.InstallLinuxPackageResponse, error) {
	close(g.asked)
	select {
	case <-g.goOn:
		return &cpb.InstallLinuxPackageResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// What an agent that reports again is just being asked for is answered.
func TestAgentsReportAgainInACall(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	r, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina", ContainerName: "penguin"})
	if err != nil {
		t.Fatal(err)
	}
	g := busyGarcon{asked: make(chan struct{}), goOn: make(chan struct{})}
	m.agent(10000, func(s *grpc.Server) { cpb.RegisterGarconServer(s, g) })
	ready := func() {
		t.Helper()
		must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: r.ContainerToken, GarconPort: 10000}))
		next[*pb.ContainerStartedSignal](w, "ContainerStarted")
	}
	ready()
	var begun sync.WaitGroup
	begun.Go(func() {
		r, err := s.InstallLinuxPackage(t.Context(), subject(), &pb.InstallLinuxPackageRequest{VmName: "termina", FilePath: "/tmp/a.deb"})
		if err != nil || r.Status != pb.InstallLinuxPackageResponse_STARTED {
			t.Errorf("%v, %v", r, err)
		}
	})
	<-g.asked
	ready()
	close(g.goOn)
	begun.Wait()
	w.quiet()
}

// A moodyGarcon says of its user what the test has it say.
type moodyGarcon struct {
	fakeGarcon
	asked chan chan<- error
}

func (g moodyGarcon) GetGarconSessionInfo(ctx context.Context, r *cpb.GetGarconSessionInfoRequest) (*cpb.GetGarconSessionInfoResponse, error) {
	answer := make(chan error, 1)
	g.asked <- answer
	if err := <-answer; err != nil {
		return nil, err
	}
	return g.fakeGarcon.GetGarconSessionInfo(ctx, r)
}

// An agent that reports is there, whatever was found about it meanwhile.
func TestAgentsReportAgainWhileTheyAreLookedFor(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	r, err := s.GetContainerToken(t.Context(), subject(), &pb.ContainerTokenRequest{VmName: "termina", ContainerName: "penguin"})
	if err != nil {
		t.Fatal(err)
	}
	g := moodyGarcon{asked: make(chan chan<- error)}
	m.agent(10000, func(s *grpc.Server) { cpb.RegisterGarconServer(s, g) })
	ready := func() {
		t.Helper()
		var call sync.WaitGroup
		call.Go(func() {
			if _, err := m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: r.ContainerToken, GarconPort: 10000}); err != nil {
				t.Error(err)
			}
		})
		answer := <-g.asked
		answer <- nil
		call.Wait()
		next[*pb.ContainerStartedSignal](w, "ContainerStarted")
	}
	ready()
	s.Close()
	s = w.serve()
	look := <-g.asked // by the one that is new, and without an answer for now
	ready()
	no := errors.New("busy")
	look <- no
	look = <-g.asked
	look <- no
	looks := 0
	eventually(t, "many looks", func() bool { looks++; return looks > 100 })
	w.quiet()
	if !w.isRunning(s, "termina", "penguin") {
		t.Error("it is not known to run")
	}
}

// An agent that goes and stays away ends its operations, but not while
// nobody could tell: with vm_concierge away, or the VM suspended.
func TestAgentDies(t *testing.T) {
	w := newWorld(t)
	s := w.serve(looksOften)
	m, _ := w.up(s, "termina", 33)
	_, stop := m.running(s, "penguin", 10000)
	m.install(s, "penguin")
	w.mu.Lock()
	w.away = true
	w.mu.Unlock()
	stop()
	looks := 0
	eventually(t, "many looks", func() bool { looks++; return looks > 100 })
	w.quiet()
	w.mu.Lock()
	w.away, m.info.Suspended = false, true
	w.mu.Unlock()
	looks = 0
	eventually(t, "many looks", func() bool { looks++; return looks > 100 })
	w.quiet()
	w.mu.Lock()
	m.info.Suspended = false
	w.mu.Unlock()
	if g := next[*pb.InstallLinuxPackageProgressSignal](w, "InstallLinuxPackageProgress"); g.Status != pb.InstallLinuxPackageProgressSignal_FAILED || !strings.Contains(g.FailureDetails, "gone") {
		t.Errorf("%v", g)
	}
	w.quiet()
}

// An end that was not heard is found out.
func TestReportIsLost(t *testing.T) {
	w := newWorld(t)
	s := w.serve(looksOften)
	m, f := w.up(s, "termina", 33)
	f.set(func() { f.info = tpb.GetContainerInfoResponse_NOT_FOUND })
	m.create(s, "penguin")
	f.set(func() { f.info = tpb.GetContainerInfoResponse_STOPPED })
	if g := next[*pb.LxdContainerCreatedSignal](w, "LxdContainerCreated"); g.Status != pb.LxdContainerCreatedSignal_CREATED {
		t.Errorf("%v", g)
	}
}

// A guest tells an end until that is answered. A service that is killed right
// after its answer has written the end down: the next one would wait for it.
func TestEndsAreWrittenDownBeforeTheyAreAnswered(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, f := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	f.set(func() { f.info = tpb.GetContainerInfoResponse_NOT_FOUND })
	m.install(s, "penguin")
	m.create(s, "other")
	ends := map[string]func(context.Context) error{
		"creation": func(ctx context.Context) error {
			_, err := m.tremplin.UpdateCreateStatus(ctx, &tpb.ContainerCreationProgress{ContainerName: "other", Status: tpb.ContainerCreationProgress_FAILED})
			return err
		},
		"installation": func(ctx context.Context) error {
			_, err := m.container.InstallLinuxPackageProgress(ctx, &cpb.InstallLinuxPackageProgressInfo{Token: token, Status: cpb.InstallLinuxPackageProgressInfo_FAILED})
			return err
		},
	}
	eventually(t, "that they go on is written down", func() bool { return strings.Contains(w.record(), "create") && strings.Contains(w.record(), "install") })
	release := cicerone.HoldSaves(s, 33)
	for what, tell := range ends {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := tell(ctx); err == nil {
			t.Errorf("the end of the %s is answered before it is written down", what)
		}
		cancel()
	}
	release()
	for what, tell := range ends {
		if err := tell(t.Context()); err != nil {
			t.Errorf("the end of the %s: %v", what, err)
		}
	}
	if r := w.record(); strings.Contains(r, "create") || strings.Contains(r, "install") {
		t.Errorf("it is written down: %s", r)
	}
}

// record is what is written down of the only VM.
func (w *world) record() string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.state, "*.json"))
	if err != nil || len(paths) != 1 {
		w.t.Fatalf("%q, %v", paths, err)
	}
	data, err := os.ReadFile(paths[0])
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// EnsureContainer creates, sets up and starts, and waits for the agent.
func TestEnsureContainer(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m := w.boot("termina", 33)
	m.announce(s)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() { done <- s.EnsureContainer(ctx, subject(), 33, "penguin", "ada") }()
	// tremplin comes up only now.
	f := newTremplin(m)
	must(t)(m.tremplin.TremplinReady(t.Context(), &tpb.TremplinStartupInfo{}))
	next[*pb.TremplinStartedSignal](w, "TremplinStarted")
	eventually(t, "it is created", func() bool { return last[*tpb.CreateContainerRequest](f) != nil })
	must(t)(m.tremplin.UpdateCreateStatus(t.Context(), &tpb.ContainerCreationProgress{ContainerName: "penguin", Status: tpb.ContainerCreationProgress_CREATED}))
	eventually(t, "it is started", func() bool { return last[*tpb.StartContainerRequest](f) != nil })
	if last[*tpb.SetUpUserRequest](f).GetContainerUsername() != "ada" {
		t.Error("the user is not set up")
	}
	must(t)(m.tremplin.UpdateStartStatus(t.Context(), &tpb.ContainerStartProgress{ContainerName: "penguin", Status: tpb.ContainerStartProgress_STARTED}))
	m.garcon(10000)
	must(t)(m.container.ContainerReady(t.Context(), &cpb.ContainerStartupInfo{Token: last[*tpb.StartContainerRequest](f).Token, GarconPort: 10000}))
	if err := <-done; err != nil {
		t.Error(err)
	}
	// One that runs is left alone, also while something is done with it that
	// keeps others from it.
	f.set(func() { f.calls = nil })
	if err := s.EnsureContainer(ctx, subject(), 33, "penguin", "ada"); err != nil {
		t.Error(err)
	}
	if create, user, start := last[*tpb.CreateContainerRequest](f), last[*tpb.SetUpUserRequest](f), last[*tpb.StartContainerRequest](f); create != nil || user != nil || start != nil {
		t.Errorf("of a container that runs the guest is asked %v, %v, %v", create, user, start)
	}
	if err := s.EnsureContainer(t.Context(), subject(), 99, "penguin", "ada"); err == nil {
		t.Error("an unknown VM has a container")
	}
}
