package vmm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/vmm/crash"
)

// A ServiceManager runs units. Each call returns when what it asks for is done.
type ServiceManager interface {
	// StartUnit returns when the unit says that it is ready.
	StartUnit(ctx context.Context, unit string) error
	// StopUnit returns when no process of the unit is left. A unit that does
	// not run is stopped already.
	StopUnit(ctx context.Context, unit string) error
	// KillUnit kills every process of the unit at once.
	KillUnit(ctx context.Context, unit string) error
	// SetProperties sets properties until the host boots again.
	SetProperties(ctx context.Context, unit string, properties map[string]any) error
}

// Units has a Launcher start supervisors as units of the service manager,
// which gives each a user, a directory and limits of its own. The unit is the
// Template with the VM's ID before its dot.
type Units struct {
	Manager ServiceManager
	// Template is auberge-vm@.service.
	Template string
	// Dir is where units have their directories, by the VM's ID.
	Dir string
}

// endTimeout bounds the end of a unit, which has as long as its TimeoutStopSec.
const endTimeout = time.Minute

func (u *Units) unit(id string) string {
	before, after, _ := strings.Cut(u.Template, "@")
	return before + "@" + id + after
}

// machineIn is the VM of a directory, whether it runs or not.
func (l *Launcher) machineIn(dir string) (*Machine, error) {
	m := newMachine(dir, l.grace)
	if l.Units != nil {
		id := filepath.Base(dir)
		if !validID(id) {
			return nil, fmt.Errorf("%s is not the directory of a VM: %q is no word of [0-9a-z]", dir, id)
		}
		m.sockets, m.unit, m.manager = filepath.Join(l.Units.Dir, id), l.Units.unit(id), l.Units.Manager
	}
	return m, nil
}

// launchUnit launches a VM as a unit. In dir, which is the daemon's alone, is
// only the exit record.
func (l *Launcher) launchUnit(ctx context.Context, dir string, spec *Spec, files []*os.File) (*Machine, error) {
	m, err := l.machineIn(dir)
	if err != nil {
		return nil, err
	}
	if filepath.Base(dir) != spec.ID {
		return nil, fmt.Errorf("VM %q cannot have the directory %s", spec.ID, dir)
	}
	m.Spec = spec
	// The unit's own directory goes with the unit; the record is still there
	// when a daemon comes back later.
	record, err := os.OpenFile(filepath.Join(dir, exitFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the VM's exit record: %w", err)
	}
	defer record.Close()
	crash.At(crash.BeforeSupervisor)
	err = m.startUnit(ctx)
	if err == nil {
		crash.At(crash.SupervisorForked)
		if err = m.manager.SetProperties(ctx, m.unit, limits(spec)); err != nil {
			err = fmt.Errorf("set the limits of the VM's unit %s: %w", m.unit, err)
		}
	}
	if err == nil {
		err = m.launch(ctx, append(append([]*os.File{}, files...), record))
	}
	if err != nil {
		return nil, errors.Join(err, m.endUnit())
	}
	return m, nil
}

func (m *Machine) startUnit(ctx context.Context) error {
	if err := m.manager.StartUnit(ctx, m.unit); err != nil {
		return fmt.Errorf("start the VM's unit %s: %w (journalctl --unit=%s may say more)", m.unit, err, m.unit)
	}
	_, err := m.identify(ctx)
	return err
}

// endUnit ends a unit of which nothing is wanted any more.
func (m *Machine) endUnit() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	err := stopNow(ctx, m.manager, m.unit)
	if m.lifeline != nil {
		m.lifeline.Close()
	}
	if m.process != nil {
		m.process.Release()
	}
	return err
}

// stopNow ends a unit without asking its processes.
func stopNow(ctx context.Context, manager ServiceManager, unit string) error {
	// It may have ended by itself; whether all of it has gone, the stop says.
	killErr := manager.KillUnit(ctx, unit)
	if err := manager.StopUnit(ctx, unit); err != nil {
		return errors.Join(fmt.Errorf("stop the VM's unit %s: %w", unit, err), killErr)
	}
	return nil
}

// End ends a VM whose supervisor does not answer, and returns when none of its
// processes is left. p are those that are known; units need not be known.
func (l *Launcher) End(ctx context.Context, dir string, p Processes) error {
	if l.Units == nil {
		return p.Kill(ctx)
	}
	m, err := l.machineIn(dir)
	if err != nil {
		return err
	}
	return stopNow(ctx, m.manager, m.unit)
}

// CanEnd says whether End can do anything.
func (l *Launcher) CanEnd(p Processes) bool { return l.Units != nil || p.Known() }

// probeUnit probes in an instance of the VMs' unit, so that the sandbox is the
// one that VMs get.
func (l *Launcher) probeUnit(ctx context.Context, kernel string) (_ AccelChoice, err error) {
	k, err := os.Open(kernel)
	if err != nil {
		return AccelChoice{}, err
	}
	defer k.Close()
	m, err := l.machineIn("probe" + strings.ToLower(rand.Text())[:8])
	if err != nil {
		return AccelChoice{}, err
	}
	defer func() { err = errors.Join(err, m.endUnit()) }()
	if err := m.startUnit(ctx); err != nil {
		return AccelChoice{}, err
	}
	r, err := call(ctx, m.control(), request{Op: opProbe}, []*os.File{k})
	switch {
	case err != nil:
		return AccelChoice{}, err
	case r.NoKVM != "":
		return AccelChoice{Accel: AccelTCG, Why: LastLines([]byte(r.NoKVM), 4)}, nil
	}
	return AccelChoice{Accel: AccelKVM}, nil
}

// limits are what a VM's unit may use.
func limits(s *Spec) map[string]any {
	return map[string]any{
		"MemoryMax": uint64(s.MemoryMiB+overheadMiB(s)) << 20,
		// The processors' threads, those of QEMU's block layer (at most 64), the
		// backend's and the supervisor's.
		"TasksMax": uint64(192 + s.CPUs),
		// Besides the processors, there are streams, disks and the network.
		"CPUQuotaPerSecUSec": uint64(s.CPUs+1) * uint64(time.Second/time.Microsecond),
	}
}

// overheadMiB is what a VM may need beyond its memory: the programs, their
// buffers and page tables, the cache of its disks that cannot be given back at
// once, and where it is emulated, the translated code, which QEMU lets grow to
// 1 GiB.
func overheadMiB(s *Spec) int64 {
	n := 256 + s.MemoryMiB/64 + 8*int64(s.CPUs)
	if s.Accel == AccelTCG {
		n += 1024
	}
	return n
}
