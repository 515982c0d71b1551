package containers

import (
	"strings"

	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// The calls of 2018: one makes a container, sets up its user and starts it, and
// another tells the keys by which it is reached.
func (s *stack) startContainerOfConcierge() {
	s.t.Helper()
	t := s.t
	var keys conciergepb.ContainerSshKeysResponse
	request := &conciergepb.StartContainerRequest{VmName: vm, ContainerUsername: "alice"}
	var resp conciergepb.StartContainerResponse
	s.concierged("StartContainer", request, &resp)
	if resp.Status != conciergepb.ContainerStatus_CONTAINER_STATUS_STARTING {
		t.Fatalf("StartContainer: %v", &resp)
	}
	// A failure has the same payload, so what is asked next has to tell.
	end := await[*conciergepb.ContainerStartedSignal](s.ear, nil)
	if end.VmName != vm || end.ContainerName != container || end.OwnerId != "64101" {
		t.Errorf("it ends with %v", end)
	}
	s.concierged("StartContainer", request, &resp)
	if resp.Status == conciergepb.ContainerStatus_CONTAINER_STATUS_STARTING {
		await[*conciergepb.ContainerStartedSignal](s.ear, nil) // a busy host: it took a while to find out
	} else if resp.Status != conciergepb.ContainerStatus_CONTAINER_STATUS_RUNNING {
		t.Fatalf("StartContainer of one that runs: %v", &resp)
	}
	if got := s.shell("id -un"); got != "alice" {
		t.Errorf("its user is %q", got)
	}
	var info conciergepb.GetVmInfoResponse
	s.concierged("GetVmInfo", &conciergepb.GetVmInfoRequest{Name: vm}, &info)
	if info.VmInfo.GetStatus() != conciergepb.VmStatus_VM_STATUS_RUNNING {
		t.Errorf("the VM is %v", &info)
	}
	s.concierged("GetContainerSshKeys", &conciergepb.ContainerSshKeysRequest{VmName: vm}, &keys)
	if !strings.HasPrefix(keys.HostPublicKey, "ssh-ed25519 ") || !strings.HasPrefix(keys.ContainerPublicKey, "ssh-ed25519 ") ||
		!strings.HasPrefix(keys.HostPrivateKey, "-----BEGIN OPENSSH PRIVATE KEY-----\n") || keys.ContainerPrivateKey == "" {
		t.Errorf("the keys are %v", &keys)
	}
	// The bridge has the first address of the network that the VM was given.
	if got := s.vmRoot("ip -4 -o addr show incusbr0 | awk '{print $4}'"); !strings.HasPrefix(got, "100.115.") || !strings.HasSuffix(got, "/28") {
		t.Errorf("the containers' bridge has %q", got)
	}
	s.concierged("StartContainer", &conciergepb.StartContainerRequest{VmName: "none"}, &resp)
	if resp.Status != conciergepb.ContainerStatus_CONTAINER_STATUS_FAILURE || !strings.Contains(resp.FailureReason, "none") {
		t.Errorf("StartContainer in no VM: %v", &resp)
	}
}

// noKeysYet checks that a container has no keys before its first start.
func (s *stack) noKeysYet() {
	s.t.Helper()
	var keys conciergepb.ContainerSshKeysResponse
	s.concierged("GetContainerSshKeys", &conciergepb.ContainerSshKeysRequest{VmName: vm}, &keys)
	if keys.HostPrivateKey != "" || keys.ContainerPublicKey != "" || keys.Hostname != "penguin.termina.linux.test" {
		s.t.Errorf("before the first start the keys are %v", &keys)
	}
}
