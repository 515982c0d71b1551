package concierge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// containerPorts are the host's ports behind which vm_cicerone is.
var containerPorts = [...]uint32{vsock.PortTremplinListener, vsock.PortCrashListener, vsock.PortContainerListener}

// Endpoints are where the streams of one VM to the host's ports arrive. The
// files are the receiver's, for vsock.ListenerFile.
type Endpoints struct {
	VM                         map[string]any
	Tremplin, Crash, Container *os.File
}

// ListVMEndpoints lists everybody's VMs that can be reached, for the daemon
// that talks to what is in them.
func (s *Service) ListVMEndpoints(context.Context) ([]map[string]any, error) {
	list := []map[string]any{}
	for _, v := range s.reachable() {
		list = append(list, v.endpoints())
	}
	return list, nil
}

// reachable are the VMs that have been launched and have not ended, sorted.
func (s *Service) reachable() []*vm {
	s.mu.Lock()
	var all []*vm
	for _, v := range s.vms {
		all = append(all, v)
	}
	s.mu.Unlock()
	all = slices.DeleteFunc(all, func(v *vm) bool {
		_, err := v.reach()
		return err != nil
	})
	sortVMs(all)
	return all
}

// OpenVMEndpoints returns where a VM's streams to vm_cicerone's ports arrive.
// This service takes none of them.
func (s *Service) OpenVMEndpoints(_ context.Context, cid uint32) (e Endpoints, err error) {
	v, m, err := s.byCID(cid)
	if err != nil {
		return Endpoints{}, err
	}
	e.VM = v.endpoints()
	for i, to := range []**os.File{&e.Tremplin, &e.Crash, &e.Container} {
		if *to, err = s.openEndpoint(v, m, containerPorts[i]); err != nil {
			closeFiles(slices.DeleteFunc([]*os.File{e.Tremplin, e.Crash, e.Container}, func(f *os.File) bool { return f == nil }))
			return Endpoints{}, fmt.Errorf("port %d of VM %q: %w", containerPorts[i], v.key.name, err)
		}
	}
	return e, nil
}

func (s *Service) openEndpoint(v *vm, m *vmm.Machine, port uint32) (*os.File, error) {
	if m.Spec.Vsock.Mode == vsock.ModeKernel {
		v.mu.Lock()
		p := v.passages[port]
		v.mu.Unlock()
		if p == nil {
			return nil, net.ErrClosed
		}
		return p.Open()
	}
	l := m.Listener(port)
	if l == nil {
		return nil, errors.New("the VM has no such endpoint")
	}
	u, ok := l.Listener.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("the endpoint is a %T", l.Listener)
	}
	return u.File()
}

// openPassages makes the way for streams to vm_cicerone's ports where all VMs
// share the host's.
func (s *Service) openPassages(v *vm) error {
	if v.machine.Spec.Vsock.Mode != vsock.ModeKernel {
		return nil
	}
	passages := map[uint32]*vsock.Passage{}
	for _, port := range containerPorts {
		l, err := s.endpoint(v.machine, port)
		if err != nil {
			for _, p := range passages {
				p.Close()
			}
			return err
		}
		passages[port] = vsock.NewPassage(l)
	}
	v.mu.Lock()
	v.passages = passages
	v.mu.Unlock()
	return nil
}

func (v *vm) closePassages() {
	v.mu.Lock()
	passages := v.passages
	v.passages = nil
	v.mu.Unlock()
	for _, p := range passages {
		p.Close()
	}
}

// ConnectVMVsock is ConnectVsock for any VM, by its CID.
func (s *Service) ConnectVMVsock(ctx context.Context, cid, port uint32) (*os.File, error) {
	v, _, err := s.byCID(cid)
	if err != nil {
		return nil, err
	}
	return s.connectTo(ctx, v, port)
}

// byCID finds a VM that can be reached, which one is that is still being set
// up.
func (s *Service) byCID(cid uint32) (*vm, *vmm.Machine, error) {
	s.mu.Lock()
	var v *vm
	for _, one := range s.vms {
		if one.cid == cid {
			v = one
		}
	}
	s.mu.Unlock()
	if v == nil {
		return nil, nil, fmt.Errorf("%w: none has the CID %d", ErrNotFound, cid)
	}
	m, err := v.reach()
	return v, m, err
}

// reach is the machine of a VM that runs, in whatever state.
func (v *vm) reach() (*vmm.Machine, error) {
	if v.ended() {
		return nil, fmt.Errorf("%w: %q has ended", ErrNotFound, v.key.name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.machine == nil && v.startErr != nil:
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, v.startErr)
	case v.machine == nil:
		return nil, fmt.Errorf("%w: %q is still being started", ErrNotRunning, v.key.name)
	}
	return v.machine, nil
}

// endpoints is what another daemon has to know of a VM, in plain values.
func (v *vm) endpoints() map[string]any {
	pid := v.info().Pid
	v.mu.Lock()
	defer v.mu.Unlock()
	d := map[string]any{
		"cid": v.cid, "uid": v.key.uid, "label": v.key.label, "owner": v.owner.Word, "name": v.key.name,
		"pid": uint32(pid), "type": uint32(appType(v.typ)), "containers": v.tremplin != tremplinNone,
		"token": v.token, "container_subnet": "", "address": "", "suspended": v.suspended, "passed": false,
	}
	if v.subnet.IsValid() {
		d["container_subnet"] = v.subnet.String()
	}
	if v.net.Guest.IsValid() {
		d["address"] = v.net.Guest.String()
	}
	if v.machine != nil {
		d["passed"] = v.machine.Spec.Vsock.Mode == vsock.ModeKernel
	}
	return d
}

// appType is a VM's type by the numbers that agents and desktops use.
func appType(t pb.VmInfo_VmType) appspb.VmType {
	switch t {
	case pb.VmInfo_TERMINA:
		return appspb.VmType_TERMINA
	case pb.VmInfo_ARC_VM:
		return appspb.VmType_ARCVM
	case pb.VmInfo_PLUGIN_VM:
		return appspb.VmType_PLUGIN_VM
	case pb.VmInfo_BOREALIS:
		return appspb.VmType_BOREALIS
	case pb.VmInfo_BRUSCHETTA:
		return appspb.VmType_BRUSCHETTA
	case pb.VmInfo_BAGUETTE:
		return appspb.VmType_BAGUETTE
	}
	return appspb.VmType_UNKNOWN
}
