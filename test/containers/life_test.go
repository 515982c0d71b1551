package containers

import (
	"strings"
	"sync"
	"testing"

	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// The main job: a container from nothing to a shell in it, and away again.
func TestContainerLife(t *testing.T) {
	// Others begin with the disk that this one leaves.
	preparing.Lock()
	prepared := sync.OnceFunc(preparing.Unlock)
	defer prepared()
	fromTheStart(t)
	s := newStack(t)
	s.startVM()
	var lxd ciceronepb.StartLxdResponse
	s.must("StartLxd", &ciceronepb.StartLxdRequest{VmName: vm}, &lxd)
	if lxd.Status != ciceronepb.StartLxdResponse_STARTING {
		t.Fatalf("StartLxd: %v", &lxd)
	}
	await(s.ear, func(p *ciceronepb.StartLxdProgressSignal) bool {
		return p.Status == ciceronepb.StartLxdProgressSignal_STARTED
	})
	s.must("StartLxd", &ciceronepb.StartLxdRequest{VmName: vm}, &lxd)
	if lxd.Status != ciceronepb.StartLxdResponse_ALREADY_RUNNING {
		t.Errorf("StartLxd again: %v", &lxd)
	}
	s.createContainer()
	var again ciceronepb.CreateLxdContainerResponse
	s.must("CreateLxdContainer", &ciceronepb.CreateLxdContainerRequest{VmName: vm, ContainerName: container}, &again)
	if again.Status != ciceronepb.CreateLxdContainerResponse_EXISTS {
		t.Errorf("CreateLxdContainer again: %v", &again)
	}
	if s.isRunning() {
		t.Error("the container runs before it was started")
	}

	// Its user stays who it is.
	var user ciceronepb.SetUpLxdContainerUserResponse
	s.must("SetUpLxdContainerUser", &ciceronepb.SetUpLxdContainerUserRequest{VmName: vm, ContainerName: container, ContainerUsername: "bob"}, &user)
	if user.Status != ciceronepb.SetUpLxdContainerUserResponse_EXISTS || user.ContainerUsername != "alice" {
		t.Errorf("SetUpLxdContainerUser for another: %v", &user)
	}

	s.noKeysYet()
	started := s.startContainer()
	if started.VmName != vm || started.ContainerName != container || started.ContainerUsername != "alice" ||
		started.ContainerHomedir != "/home/alice" || len(started.ContainerToken) != 36 || started.OwnerId == "" {
		t.Errorf("ContainerStarted: %v", started)
	}
	if !s.isRunning() {
		t.Error("the container does not run after ContainerStarted")
	}
	if got := s.shell("id -un; id -u; . /etc/os-release; echo $ID"); got != "alice\n1000\ndebian" {
		t.Errorf("a shell in the container: %q", got)
	}
	if got := s.root("ip -4 -o addr show eth0"); !strings.Contains(got, started.Ipv4Address+"/") {
		t.Errorf("ContainerStarted has the address %q, the container %s", started.Ipv4Address, got)
	}
	s.awaitZone("JST")
	s.setZone("Asia/Kolkata")
	s.awaitZone("IST")
	if text := s.run("vmc", "logs", vm); strings.Contains(text, "Failed to update instance types") {
		t.Errorf("Incus asks its project for something:\n%s", text)
	}
	var name ciceronepb.GetLxdContainerUsernameResponse
	s.must("GetLxdContainerUsername", &ciceronepb.GetLxdContainerUsernameRequest{VmName: vm, ContainerName: container}, &name)
	if name.Status != ciceronepb.GetLxdContainerUsernameResponse_SUCCESS || name.Username != "alice" || name.Homedir != "/home/alice" {
		t.Errorf("GetLxdContainerUsername: %v", &name)
	}
	var running ciceronepb.ListRunningContainersResponse
	s.must("ListRunningContainers", &ciceronepb.ListRunningContainersRequest{}, &running)
	if len(running.Containers) != 1 || running.Containers[0].ContainerName != container || running.Containers[0].OsRelease.GetId() != "debian" {
		t.Errorf("ListRunningContainers: %v", &running)
	}
	var debug ciceronepb.GetDebugInformationResponse
	s.must("GetDebugInformation", &ciceronepb.GetDebugInformationRequest{}, &debug)
	if !strings.Contains(debug.DebugInformation, container+": Running") {
		t.Errorf("GetDebugInformation: %v", &debug)
	}

	var stop ciceronepb.StopLxdContainerResponse
	s.must("StopLxdContainer", &ciceronepb.StopLxdContainerRequest{VmName: vm, ContainerName: container}, &stop)
	if st := stop.Status; st != ciceronepb.StopLxdContainerResponse_STOPPING && st != ciceronepb.StopLxdContainerResponse_STOPPED {
		t.Fatalf("StopLxdContainer: %v", &stop)
	}
	await(s.ear, func(p *ciceronepb.LxdContainerStoppingSignal) bool {
		return p.Status == ciceronepb.LxdContainerStoppingSignal_STOPPED
	})
	if down := await[*ciceronepb.ContainerShutdownSignal](s.ear, nil); down.ContainerName != container {
		t.Errorf("ContainerShutdown: %v", down)
	}
	if s.isRunning() {
		t.Error("the container runs after it was stopped")
	}
	s.stopVM()
	s.keepDisk()
	prepared()

	s.startVM()
	var del ciceronepb.DeleteLxdContainerResponse
	s.must("DeleteLxdContainer", &ciceronepb.DeleteLxdContainerRequest{VmName: vm, ContainerName: container}, &del)
	if del.Status != ciceronepb.DeleteLxdContainerResponse_DELETING {
		t.Fatalf("DeleteLxdContainer: %v", &del)
	}
	if end := await[*ciceronepb.LxdContainerDeletedSignal](s.ear, nil); end.Status != ciceronepb.LxdContainerDeletedSignal_DELETED {
		t.Errorf("LxdContainerDeleted: %v", end)
	}
	s.must("DeleteLxdContainer", &ciceronepb.DeleteLxdContainerRequest{VmName: vm, ContainerName: container}, &del)
	if del.Status != ciceronepb.DeleteLxdContainerResponse_DOES_NOT_EXIST {
		t.Errorf("DeleteLxdContainer again: %v", &del)
	}
	s.startContainerOfConcierge()
	if more := all[*ciceronepb.ContainerShutdownSignal](s.ear); len(more) > 0 {
		t.Errorf("more of ContainerShutdown: %v", more)
	}
	s.vmcAlone()
	s.run("vmc", "stop", vm)
}

func (s *stack) isRunning() bool {
	s.t.Helper()
	var resp ciceronepb.IsContainerRunningResponse
	s.must("IsContainerRunning", &ciceronepb.IsContainerRunningRequest{VmName: vm, ContainerName: container}, &resp)
	return resp.ContainerRunning
}
