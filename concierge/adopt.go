package concierge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/crash"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	recordSuffix = ".json"
	// attachTimeout bounds what one supervisor may cost a restart.
	attachTimeout = 10 * time.Second
)

// recordPath is outside of the VM's directory, which is the VMs' user's too.
func (s *Service) recordPath(id string) string {
	return filepath.Join(s.recordsDir(), id+recordSuffix)
}

func (s *Service) recordsDir() string { return filepath.Join(s.cfg.RuntimeDir, "records") }

// writeRecord stores what a restarted service has to know of a VM.
func (s *Service) writeRecord(v *vm, state recordState) error {
	v.recording.Lock()
	defer v.recording.Unlock()
	return s.record(v, state)
}

// record is writeRecord for whoever records.
func (s *Service) record(v *vm, state recordState) error {
	s.mu.Lock()
	v.mu.Lock()
	v.recorded = state
	r := record{UID: v.key.uid, Label: v.key.label, Name: v.key.name, Word: v.owner.Word, Type: int32(v.typ),
		CID: v.cid, Net: v.net, Memory: v.memory, CPUs: v.cpus, Since: v.since, Token: v.token,
		Disk: v.disk, Sparse: v.sparse, Asleep: v.asleep, Image: v.image, State: state, Disks: v.disks, Processes: v.processes,
		Subnet: v.subnet, Tremplin: v.tremplin}
	v.mu.Unlock()
	s.mu.Unlock()
	b, err := json.Marshal(r)
	if err == nil {
		err = storeFile(s.recordPath(v.id), b, crash.RecordWritten, crash.RecordStored)
	}
	if err != nil {
		return fmt.Errorf("record the VM: %w", err)
	}
	return nil
}

// adoptAll takes over the VMs that run, each on its own, so that one that
// does not answer costs the others nothing. A VM that cannot be taken over is
// left alone and reported; one that has ended is cleared away.
func (s *Service) adoptAll(ctx context.Context) {
	ids, err := s.traces()
	if err != nil {
		s.log.Error("look for running VMs", "err", err)
		return
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if err := s.adopt(ctx, filepath.Join(s.vmsDir(), id)); err != nil {
				s.log.Error("a VM could not be taken over", "id", id, "err", err)
			}
		})
	}
	wg.Wait()
}

// traces lists the VMs of which a directory or a record is left.
func (s *Service) traces() ([]string, error) {
	dirs, err := os.ReadDir(s.vmsDir())
	if err != nil {
		return nil, err
	}
	records, err := os.ReadDir(s.recordsDir())
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, d := range dirs {
		ids = append(ids, d.Name())
	}
	for _, r := range records {
		// What begins with a dot is a record that was being written.
		if id, ok := strings.CutSuffix(r.Name(), recordSuffix); ok && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

func (s *Service) adopt(ctx context.Context, dir string) error {
	b, err := os.ReadFile(s.recordPath(filepath.Base(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		// The record is made before the supervisor: nothing runs here.
		return s.removeDir(dir)
	}
	var r record
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && r.Name == "" {
		err = errors.New("it names no VM")
	}
	if err != nil {
		return s.withoutRecord(ctx, dir, err)
	}
	v := s.vmOf(dir, r)
	s.claim(v)
	m, err := s.attach(ctx, dir)
	switch {
	case errors.Is(err, vmm.ErrGone):
		e, rerr := vmm.ReadExit(dir)
		v.log.Info("a VM ended while the service was away", "reason", e.Reason, "message", e.Message, "err", rerr)
		s.noteGone(v, e)
		v.asked = true // nobody can have it any more
		return s.enterAdopted(v, func() {
			close(v.started)
			s.finishOff(v)
			s.remove(v)
		})
	case err == nil:
		var then func()
		if then, err = s.takeOver(v, r.State, m); err == nil {
			return s.enterAdopted(v, func() {
				close(v.started)
				then()
			})
		}
	}
	// It may well run: what it has stays its own, and it is tried again.
	v.log.Error("a VM could not be taken over", "err", err)
	v.lose(err)
	return s.enterAdopted(v, func() {
		close(v.started)
		s.retry(v, r.State)
	})
}

// attach finds a VM's supervisor, within a time that one which does not answer
// may cost.
func (s *Service) attach(ctx context.Context, dir string) (*vmm.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	return s.cfg.Launcher.Attach(ctx, dir)
}

// takeOver makes a VM that was found the service's, and says what is to be
// done with it.
func (s *Service) takeOver(v *vm, state recordState, m *vmm.Machine) (then func(), err error) {
	// The socket's name is the VMs' user's to change, the record is not.
	if m.Spec.ID != v.id || m.Spec.Vsock.CID != v.cid {
		m.Release()
		return nil, fmt.Errorf("what answers in its place is VM %q with the CID %d, not %q with the CID %d", m.Spec.ID, m.Spec.Vsock.CID, v.id, v.cid)
	}
	v.mu.Lock()
	v.machine = m
	if state != recordRunning {
		// Nobody waits for the rest of its start any more.
		v.asked = true
	}
	v.mu.Unlock()
	if state != recordRunning {
		return func() {
			s.openLog(v)
			v.note(vmlog.Warning, "the service ended while it started the VM, which is given up")
			s.abandon(context.Background(), v)
			s.remove(v)
		}, nil
	}
	if err := s.connect(v); err != nil {
		v.letGo()
		v.mu.Lock()
		v.machine = nil
		v.mu.Unlock()
		return nil, err
	}
	v.agent.MarkReady()
	v.mu.Lock()
	v.status, v.startErr, v.suspended = pb.VmStatus_VM_STATUS_RUNNING, nil, m.FoundPaused()
	v.mu.Unlock()
	s.changed(v)
	v.log.Info("found the VM running", "pid", m.PID(), "cid", v.cid)
	v.note(vmlog.Info, "the service is back and has found the VM running")
	return func() { s.attend(v) }, nil
}

func (s *Service) vmOf(dir string, r record) *vm {
	id := filepath.Base(dir)
	owner := policy.Owner{UID: r.UID, Label: r.Label, Word: r.Word}
	ctx, abort := context.WithCancelCause(s.quit)
	return &vm{
		key: key{uid: r.UID, label: r.Label, name: r.Name}, owner: owner, id: id, dir: dir,
		cid: r.CID, net: r.Net, typ: pb.VmInfo_VmType(r.Type), memory: r.Memory, reserved: uint64(max(r.Memory, 0)), announced: true,
		disks: r.Disks, processes: r.Processes,
		log:      s.log.With("vm", r.Name, "owner", r.Word, "id", id),
		starting: ctx, abort: abort,
		stopping: make(chan struct{}), started: make(chan struct{}), gone: make(chan struct{}), turn: make(chan struct{}, 1), containersUp: make(chan struct{}),
		subnet: r.Subnet, tremplin: r.Tremplin, recorded: r.State,
		cpus: r.CPUs, since: r.Since, token: r.Token, disk: r.Disk, sparse: r.Sparse, asleep: r.Asleep, image: r.Image,
	}
}

// claim keeps network and CID of a VM that may still run from new ones.
func (s *Service) claim(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nets.claim(v.net)
	s.nets.claimSubnet(v.subnet)
	// Beyond the last one there is no next, and no VM either.
	if v.cid >= s.nextCID && v.cid < vsock.CIDAny-1 {
		s.nextCID = v.cid + 1
	}
}

// enterAdopted puts a found VM into the table and then does with it what has
// to be done, in a goroutine of the VM's.
func (s *Service) enterAdopted(v *vm, then func()) error {
	s.mu.Lock()
	other := s.vms[v.key]
	if other == nil {
		s.vms[v.key] = v
	}
	s.mu.Unlock()
	if other != nil {
		v.letGo()
		return errors.New("another VM has the same owner and name: " + strconv.Quote(v.key.name))
	}
	s.running.Go(then)
	return nil
}
