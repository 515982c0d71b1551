package concierge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

var discardLog = slog.New(slog.DiscardHandler)

// fakeDevice stands for /dev/vhost-vsock, which hosts of tests have not got.
func fakeDevice(s *Service, reserve func(cid uint32) error) {
	s.cfg.ReserveCID = func(_ context.Context, a vsock.Addr) (*os.File, error) {
		if err := reserve(a.CID); err != nil {
			return nil, fmt.Errorf("take the CID %d: %w", a.CID, err)
		}
		return os.Open("/dev/null")
	}
}

func kernelService(t *testing.T) *Service {
	return &Service{cfg: Config{Vsock: vsock.ModeKernel, StateDir: t.TempDir()}, log: discardLog, nextCID: 40,
		settingsTurn: make(chan struct{}, 1)}
}

// A CID that another program's VM has is passed over.
func TestCIDOfAnotherProgram(t *testing.T) {
	taken := map[uint32]bool{33: true, 40: true, 41: true}
	s := kernelService(t)
	fakeDevice(s, func(cid uint32) error {
		if taken[cid] {
			return syscall.EADDRINUSE
		}
		return nil
	})
	for _, test := range []struct{ has, want uint32 }{{32, 32}, {33, 42}, {34, 34}} {
		v, p := &vm{cid: test.has, log: discardLog}, &plan{}
		if err := s.planVsock(t.Context(), v, p); err != nil {
			t.Fatal(err)
		}
		got := p.spec.Vsock
		if v.cid != test.want || got.CID != test.want || got.Mode != vsock.ModeKernel || len(got.Ports) > 0 ||
			got.Device == nil || *got.Device != 0 || len(p.files) != 1 {
			t.Errorf("%d became %d: %+v", test.has, v.cid, got)
		}
		p.close()
	}
	if next := s.takeCID(); next != 43 {
		t.Errorf("the next VM gets %d", next)
	}
}

// It is not looked for without end, and other failures are told as they are.
func TestNoCID(t *testing.T) {
	for err, want := range map[error]string{syscall.EADDRINUSE: "64 CIDs in turn", syscall.EACCES: "permission denied"} {
		tries := 0
		s := kernelService(t)
		fakeDevice(s, func(uint32) error { tries++; return err })
		v, p := &vm{cid: 32, log: discardLog}, &plan{}
		if err := s.planVsock(t.Context(), v, p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
		if tries != 1 && tries != cidTries {
			t.Errorf("%d tries", tries)
		}
		if len(p.files) > 0 {
			t.Error("a file is left")
		}
	}
}

// With kernel vsock only our own image starts, until an administrator allows
// more for one VM.
func TestUncheckedAgent(t *testing.T) {
	s := kernelService(t)
	if err := os.MkdirAll(filepath.Join(s.cfg.StateDir, "settings"), 0o700); err != nil {
		t.Fatal(err)
	}
	sub := policy.Subject{Owner: policy.Owner{UID: 64101, Word: "64101"}}
	k := keyOf(sub.Owner, "mine")
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fds := func(types ...pb.StartVmRequest_FdType) fdMap {
		m := fdMap{}
		for _, t := range types {
			m[t] = null
		}
		return m
	}
	kernel, rootfs := &pb.VirtualMachineSpec{Kernel: "/k"}, &pb.VirtualMachineSpec{Rootfs: "/r"}
	own := map[string]struct {
		req *pb.StartVmRequest
		fds fdMap
	}{
		"kernel":            {&pb.StartVmRequest{Vm: kernel}, nil},
		"root file system":  {&pb.StartVmRequest{Vm: rootfs}, nil},
		"kernel ":           {&pb.StartVmRequest{StartTermina: true}, fds(pb.StartVmRequest_KERNEL)},
		"initrd":            {&pb.StartVmRequest{}, fds(pb.StartVmRequest_INITRD)},
		"root file system ": {&pb.StartVmRequest{StartTermina: true}, fds(pb.StartVmRequest_ROOTFS)},
	}
	for what, o := range own {
		if err := s.agentAllowed(k, o.req, o.fds); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(what)) || !strings.Contains(err.Error(), "vsock-allow") {
			t.Errorf("its own %s: %v", what, err)
		}
	}
	for what, req := range map[string]*pb.StartVmRequest{
		"the image": {}, "paths that are ignored": {StartTermina: true, Vm: &pb.VirtualMachineSpec{Kernel: "/k", Rootfs: "/r"}},
	} {
		if err := s.agentAllowed(k, req, fds(pb.StartVmRequest_STORAGE)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// ConfigureVm neither allows it nor takes it back.
	if err := s.AllowUncheckedAgent(t.Context(), sub, "mine", true); err != nil {
		t.Fatal(err)
	}
	if err := s.ConfigureVm(t.Context(), sub, "mine", Settings{CPUs: new(uint32(1)), UncheckedAgent: false}); err != nil {
		t.Fatal(err)
	}
	if err := s.ConfigureVm(t.Context(), sub, "other", Settings{UncheckedAgent: true}); err != nil {
		t.Fatal(err)
	}
	if set, err := s.GetVmSettings(sub, "mine"); err != nil || !set.UncheckedAgent || *set.CPUs != 1 {
		t.Errorf("the settings are %+v, %v", set, err)
	}
	for what, o := range own {
		if err := s.agentAllowed(k, o.req, o.fds); err != nil {
			t.Errorf("its own %s, allowed: %v", what, err)
		}
		if err := s.agentAllowed(keyOf(sub.Owner, "other"), o.req, o.fds); err == nil {
			t.Errorf("another VM's own %s", what)
		}
		if err := s.agentAllowed(key{uid: 64102, name: "mine"}, o.req, o.fds); err == nil {
			t.Errorf("another user's own %s", what)
		}
	}
	if err := s.AllowUncheckedAgent(t.Context(), sub, "mine", false); err != nil {
		t.Fatal(err)
	}
	if err := s.agentAllowed(k, own["initrd"].req, own["initrd"].fds); err == nil {
		t.Error("it is still allowed")
	}
	if err := s.AllowUncheckedAgent(t.Context(), sub, "a/b", true); !errors.Is(err, ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
	s.cfg.Vsock = vsock.ModeUser
	if err := s.agentAllowed(k, own["initrd"].req, own["initrd"].fds); err != nil {
		t.Errorf("with user vsock: %v", err)
	}
}

// Streams to guests with kernel vsock go by whoever may use reserved ports.
func TestDialGuest(t *testing.T) {
	why := errors.New("dialled")
	var to vsock.Addr
	s := kernelService(t)
	s.cfg.DialGuest = func(_ context.Context, a vsock.Addr) (*vsock.Conn, error) {
		to = a
		return nil, why
	}
	m := &vmm.Machine{Dir: t.TempDir(), Spec: &vmm.Spec{ID: "abc", Vsock: vmm.Vsock{Mode: vsock.ModeKernel, CID: 40}}}
	if _, err := s.dial(t.Context(), m, 8888); !errors.Is(err, why) || to != (vsock.Addr{VM: "abc", CID: 40, Port: 8888}) {
		t.Errorf("dialled %v, %v", to, err)
	}
	m.Spec.Vsock.Mode = vsock.ModeUser
	if _, err := s.dial(t.Context(), m, 8888); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with user vsock: %v", err)
	}
}

func kernelMachine() *vmm.Machine {
	return &vmm.Machine{Spec: &vmm.Spec{ID: "abc", Vsock: vmm.Vsock{Mode: vsock.ModeKernel, CID: 40}}}
}
