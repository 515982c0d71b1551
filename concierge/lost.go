package concierge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/vmm"
)

// A VM that may run but cannot be taken over is lost: it keeps its name, its
// addresses and its disks, is listed with VM_STATUS_FAILURE, and is looked for
// again and again.

const (
	// Waits between attempts grow from the first to the last.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// killTimeout bounds the wait for processes that were killed, and for what
	// the service manager does then for their unit.
	killTimeout = 45 * time.Second
)

// lose marks a VM as lost.
func (v *vm) lose(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = pb.VmStatus_VM_STATUS_FAILURE
	v.startErr = fmt.Errorf("VM %q runs since before this service was started and cannot be taken over; it is tried again, "+
		"and StopVm ends it: %w", v.key.name, why)
}

// retry tries to take over a lost VM until that succeeds, the VM has gone, or
// somebody wants it stopped.
func (s *Service) retry(v *vm, state recordState) {
	stopping := v.stopping
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-stopping:
			t.Stop()
			stopping = nil
			state = recordStarting // whatever it was, it is to end
			s.changed(v)
			s.emitStopping(v)
			if s.finishOff(v) {
				s.remove(v)
				return
			}
		case <-s.quit.Done():
			t.Stop()
			return
		}
		m, err := s.attach(s.quit, v.dir)
		switch {
		case errors.Is(err, vmm.ErrGone):
			e, _ := vmm.ReadExit(v.dir) // without a record nobody knows why
			s.noteGone(v, e)
			s.finishOff(v)
			s.remove(v)
			return
		case err == nil:
			then, err := s.takeOver(v, state, m)
			if err == nil {
				if state == recordRunning && !m.FoundPaused() {
					s.running.Go(func() { s.refresh(s.quit, v) })
				}
				then()
				return
			}
			v.lose(err)
		case s.quit.Err() == nil:
			v.log.Warn("a VM still cannot be taken over", "err", err)
		}
	}
}

// finishOff kills what is left of a VM for which nobody answers, and says
// whether it is sure that nothing runs any more.
func (s *Service) finishOff(v *vm) bool {
	if !s.cfg.Launcher.CanEnd(v.processes) {
		return false
	}
	ctx, cancel := context.WithTimeout(s.quit, killTimeout)
	defer cancel()
	if err := s.cfg.Launcher.End(ctx, v.dir, v.processes); err != nil {
		v.log.Error("kill what is left of the VM", "err", err)
		return false
	}
	return true
}

// withoutRecord deals with a VM whose record cannot be read: nobody can be
// told whose it is. When it has ended it is cleared away; while it runs it
// keeps its addresses, and its hypervisor keeps its disks locked.
func (s *Service) withoutRecord(ctx context.Context, dir string, why error) error {
	v := s.vmOf(dir, record{})
	m, err := s.attach(ctx, dir)
	switch {
	case errors.Is(err, vmm.ErrGone):
		v.log.Warn("a VM with a damaged record has ended", "id", v.id, "err", why)
		err = s.removeDir(dir)
		return errors.Join(err, os.Remove(s.recordPath(v.id)))
	case err != nil:
		return fmt.Errorf("its record %s is damaged (%w), and its supervisor does not answer: %w", s.recordPath(v.id), why, err)
	}
	defer m.Release()
	v.cid = m.Spec.Vsock.CID
	if m.Spec.Network != nil {
		v.net = *m.Spec.Network
	}
	s.claim(v)
	return fmt.Errorf("its record %s is damaged: %w; it runs on as process %d and cannot be reached: end that process to be rid of it",
		s.recordPath(v.id), why, m.PID())
}

// cleanTimeout bounds what removing a directory may take.
const cleanTimeout = 10 * time.Second

// removeDir removes a VM's directory. What the VMs' user has made there so
// that nobody else can remove it, that user removes.
func (s *Service) removeDir(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.quit), cleanTimeout)
	defer cancel()
	if cerr := s.cfg.Launcher.Clean(ctx, dir); cerr != nil {
		return errors.Join(err, cerr)
	}
	return os.RemoveAll(dir)
}
