package concierge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

const (
	recordSuffix = ".json"
	// attachTimeout bounds what one supervisor may cost a restart.
	attachTimeout = 5 * time.Second
)

// recordPath is outside of the VM's directory, which is the VMs' user's too.
func (s *Service) recordPath(id string) string {
	return filepath.Join(s.recordsDir(), id+recordSuffix)
}

func (s *Service) recordsDir() string { return filepath.Join(s.cfg.RuntimeDir, "records") }

// writeRecord stores what a restarted service has to know of a VM.
func (s *Service) writeRecord(v *vm, state recordState) error {
	v.mu.Lock()
	r := record{UID: v.key.uid, Label: v.key.label, Name: v.key.name, Word: v.owner.Word, Type: int32(v.typ),
		CID: v.cid, Net: v.net, Memory: v.memory, State: state}
	v.mu.Unlock()
	b, err := json.Marshal(r)
	if err == nil {
		err = renameio.WriteFile(s.recordPath(v.id), b, 0o600)
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
	entries, err := os.ReadDir(s.vmsDir())
	if err != nil {
		s.log.Error("look for running VMs", "err", err)
		return
	}
	var wg sync.WaitGroup
	for _, e := range entries {
		wg.Go(func() {
			if err := s.adopt(ctx, filepath.Join(s.vmsDir(), e.Name())); err != nil {
				s.log.Error("a VM could not be taken over", "dir", e.Name(), "err", err)
			}
		})
	}
	wg.Wait()
}

func (s *Service) adopt(ctx context.Context, dir string) error {
	b, err := os.ReadFile(s.recordPath(filepath.Base(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		// The record is made before the supervisor: nothing runs here.
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("its record is damaged: %w", err)
	}
	v := s.vmOf(dir, r)
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	m, err := vmm.Attach(ctx, dir)
	switch {
	case errors.Is(err, vmm.ErrGone):
		e, _ := vmm.ReadExit(dir)
		v.log.Info("a VM ended while the service was away", "reason", e.Reason, "message", e.Message)
		return s.enterAdopted(v, func() {
			close(v.started)
			s.remove(v)
		})
	case err != nil:
		return err
	}
	v.machine = m
	if r.State != recordRunning {
		// Nobody waits for the rest of its start any more.
		return s.enterAdopted(v, func() {
			close(v.started)
			s.abandon(context.Background(), v)
			s.remove(v)
		})
	}
	if err := s.connect(v); err != nil {
		return err
	}
	v.agent.MarkReady()
	return s.enterAdopted(v, func() { s.run(s.quit, v, nil) })
}

func (s *Service) vmOf(dir string, r record) *vm {
	id := filepath.Base(dir)
	owner := policy.Owner{UID: r.UID, Label: r.Label, Word: r.Word}
	ctx, abort := context.WithCancelCause(s.quit)
	return &vm{
		key: key{uid: r.UID, label: r.Label, name: r.Name}, owner: owner, id: id, dir: dir,
		cid: r.CID, net: r.Net, typ: pb.VmInfo_VmType(r.Type), memory: r.Memory, announced: true,
		log:      s.log.With("vm", r.Name, "owner", r.Word, "id", id),
		starting: ctx, abort: abort,
		stopping: make(chan struct{}), started: make(chan struct{}), gone: make(chan struct{}),
	}
}

// enterAdopted puts a found VM into the table and then does with it what has
// to be done, in a goroutine of the VM's.
func (s *Service) enterAdopted(v *vm, then func()) error {
	s.mu.Lock()
	other := s.vms[v.key]
	if other == nil {
		s.vms[v.key] = v
		s.nets.claim(v.net)
		if v.cid >= s.nextCID {
			s.nextCID = v.cid + 1
		}
	}
	s.mu.Unlock()
	if other != nil {
		return errors.New("another VM has the same owner and name: " + strconv.Quote(v.key.name))
	}
	s.running.Go(then)
	return nil
}
