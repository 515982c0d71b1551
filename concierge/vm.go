package concierge

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"

	"github.com/auberge-vm/auberge/concierge/vmlog"
	"github.com/auberge-vm/auberge/guestlink"
	"github.com/auberge-vm/auberge/guestlink/maitred"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/crash"
	"github.com/auberge-vm/auberge/vsock"
)

// A vm is one entry of the table, from the moment a start is accepted until
// everything of it has gone and its owner has been told. One goroutine, run,
// owns its life; others read the fields under mu or wait on the channels.
type vm struct {
	key   key
	owner policy.Owner
	id    string
	dir   string
	cid   uint32
	net   vmm.Network
	typ   pb.VmInfo_VmType
	log   *slog.Logger

	// disks are the images that the VM has open; under the table's lock.
	disks []diskUse
	// reserved is memory in bytes that counts as the VM's, pledged that the
	// host does not show it yet; both under the table's lock.
	reserved uint64
	pledged  bool

	// starting is the context of a start in progress, which abort ends.
	starting context.Context
	abort    context.CancelCauseFunc
	// diary is the VM's log and collector what hears the guest's part of it;
	// run's alone.
	diary     *vmlog.Log
	collector *maitred.Collector
	// announced is set when the owner has been told of the VM; run's alone.
	announced bool
	// stopping is closed by the first request to stop.
	stopping chan struct{}
	// started is closed when the start has succeeded or failed.
	started chan struct{}
	// gone is closed last, when the entry has left the table.
	gone chan struct{}
	// turn is held by whoever suspends, resumes or stops the VM.
	turn chan struct{}
	// told is how far the host had changed when the guest could last be told:
	// before it was set up, or suspended. It belongs to run and then to whoever
	// has the turn.
	told hostChanges

	mu       sync.Mutex
	machine  *vmm.Machine
	agent    agent
	status   pb.VmStatus
	memory   int64 // bytes
	startErr error
	termina  guestlink.TerminaResult
	wake     func() // has a running VM followed
	asked    bool   // a stop was asked, or is due without
	// processes are known also while nobody answers for them.
	processes vmm.Processes
	reason    pb.VmStopReason

	cpus      int
	since     time.Time // it runs
	suspended bool
	asleep    bool   // it was suspended for the time that the host sleeps
	kernel    string // what the guest said of its kernel
	// token is what the agents of a guest without containers are known by.
	token string
	disk  ownDisk
	image string // the key of the installed image of which it has files
	// sparse says that the guest should know how much space the host has;
	// space is what it was told last.
	sparse, spaceTold bool
	space             int64

	// subnet is the containers', tremplin their manager.
	subnet   netip.Prefix
	tremplin tremplinState
	// containersUp is closed when that has reported to this service.
	containersUp chan struct{}
	// passages hand streams on to vm_cicerone with kernel vsock.
	passages map[uint32]*vsock.Passage

	// recording is held by whoever writes or removes the record, recorded what
	// it says.
	recording sync.Mutex
	recorded  recordState
	// containerStarts are the containers that are being started; guarded by the
	// service's lock.
	containerStarts map[string]*containerStart
	// notices are for vm_cicerone.
	notices notices

	resizing bool // guarded by the service's lock

	health health
}

// ownDisk is the disk of a VM that is in its owner's store under the VM's name.
type ownDisk struct {
	Has bool `json:"has,omitempty"`
	// Index is its place in the Spec.
	Index int `json:"index,omitempty"`
	// Stateful: the guest has its stateful file system on it.
	Stateful bool `json:"stateful,omitempty"`
}

// agent is what this package uses of a guest's agent.
type agent interface {
	guestlink.Agent
	guestlink.ContainerHost
	guestlink.UserManager
	guestlink.StorageManager
	// MarkReady spares a VM found running its word that it is up.
	MarkReady()
}

var _ agent = (*maitred.Link)(nil)

// errStopped ends a start that somebody stopped.
var errStopped = errors.New("the VM was stopped while it was starting")

// info is what replies and signals say of the VM.
func (v *vm) info() *pb.VmInfo {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := &pb.VmInfo{Cid: int64(v.cid), VmType: v.typ, Status: v.statusNow(), AllocatedMemory: v.memory}
	if v.net.Guest.IsValid() {
		i.Ipv4Address = maitred.NetworkOrder(v.net.Guest)
	}
	i.Pid = int32(v.processes.Hypervisor.PID)
	if v.machine != nil {
		i.Pid = int32(v.machine.PID())
	}
	return i
}

// ended says that the VM itself has gone, though its place in the table may
// still be taken.
func (v *vm) ended() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status == pb.VmStatus_VM_STATUS_STOPPED || (v.machine != nil && v.machineEnded())
}

func (v *vm) setStatus(s pb.VmStatus) {
	v.mu.Lock()
	v.status = s
	v.mu.Unlock()
}

// requestStop asks the owner goroutine to stop the VM. The first reason
// counts.
func (v *vm) requestStop(reason pb.VmStopReason) {
	v.mu.Lock()
	first, wake := !v.asked, v.wake
	if first {
		v.asked, v.reason = true, reason
	}
	v.mu.Unlock()
	if first {
		close(v.stopping)
		v.abort(errStopped)
		if wake != nil {
			wake()
		}
	}
}

func (v *vm) stopReason() pb.VmStopReason {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asked {
		return v.reason
	}
	return pb.VmStopReason_VM_EXITED
}

// run is the life of a VM, which boot starts; that of one found after a restart
// begins with follow. It returns with the VM gone, or still there when the
// service ends.
func (s *Service) run(ctx context.Context, v *vm, boot func(context.Context) error, op *operation) {
	if err := boot(ctx); err != nil {
		v.log.Warn("VM did not start", "err", err)
		v.noteFailure(err)
		v.mu.Lock()
		v.startErr = err
		v.mu.Unlock()
		s.remove(v)
		s.finish(op, err)
		close(v.started)
		return
	}
	v.health.heard()
	told := v.told
	v.setStatus(pb.VmStatus_VM_STATUS_RUNNING)
	if s.changesSoFar() != told {
		s.running.Go(func() { s.catchUp(s.quit, v, told) })
	}
	s.changed(v)
	s.finish(op, nil)
	v.log.Info("VM started", "pid", v.machine.PID(), "cid", v.cid)
	v.note(vmlog.Info, "the VM has started")
	info := v.info()
	s.emit(v, "VmStartedSignal", &pb.VmStartedSignal{Name: v.key.name, OwnerId: v.owner.Word,
		VmInfo: info, Status: info.Status})
	crash.At(crash.Started)
	close(v.started)
	s.attend(v)
}

// attend follows a running VM, which takes no goroutine until something
// happens to it.
func (s *Service) attend(v *vm) {
	ctx, wake := context.WithCancel(s.quit)
	s.running.Add(1)
	context.AfterFunc(ctx, func() {
		defer s.running.Done()
		s.follow(v)
	})
	v.machine.OnEnd(wake)
	v.mu.Lock()
	v.wake = wake
	asked := v.asked
	v.mu.Unlock()
	if asked {
		wake()
	}
	s.tidyLater()
}

// follow does what is to be done at the end of a running VM, or to bring it
// about.
func (s *Service) follow(v *vm) {
	select {
	case <-v.machine.Done():
	case <-v.stopping:
		s.shutdown(v)
	case <-s.quit.Done():
	}
	if v.machineEnded() {
		e := v.machine.Exit()
		v.log.Info("VM ended", "reason", e.Reason, "message", e.Message)
		v.noteEnd(e)
	} else if s.quit.Err() != nil {
		v.letGo()
		return
	}
	s.remove(v)
}

// letGo gives up what the service holds of a VM that runs on.
func (v *vm) letGo() {
	if v.agent != nil {
		v.agent.Close()
	}
	v.closePassages()
	v.closeLog()
	if v.machine != nil {
		v.machine.Release()
	}
}

func (v *vm) machineEnded() bool {
	select {
	case <-v.machine.Done():
		return true
	default:
		return false
	}
}

// shutdown stops a running VM in order, by harder means at each step. It gives
// up when the service ends: the next one finds what has become of the VM.
func (s *Service) shutdown(v *vm) {
	v.log.Info("stopping VM", "reason", v.stopReason())
	v.note(vmlog.Info, "stopping the VM: %v", v.stopReason())
	s.changed(v)
	s.emitStopping(v)
	op := s.beginOperation(opStop, v.owner, v.key.name, nil)
	defer func() {
		var err error
		if !v.machineEnded() {
			err = errors.New("the VM has not ended")
		}
		s.finish(op, err)
	}()
	crash.At(crash.StopAnnounced)
	err := s.powerOff(v)
	crash.At(crash.PoweredOff)
	if err == nil && endsWithin(s.quit, v.machine, exitGrace+shutdownGrace) || s.quit.Err() != nil {
		return
	}
	v.log.Warn("the guest did not shut down", "err", err)
	// The supervisor's own ladder has three steps.
	ctx, cancel := context.WithTimeout(s.quit, 4*exitGrace)
	err = v.machine.Stop(ctx, "the guest did not shut down in order")
	cancel()
	if err == nil || s.quit.Err() != nil {
		return
	}
	v.log.Error("the VM's supervisor does not stop it", "err", err)
	if err := v.machine.Kill(); err != nil {
		v.log.Error("kill the VM's supervisor", "err", err)
	}
	endsWithin(s.quit, v.machine, exitGrace)
}

// powerOff asks the guest to power off; one that is suspended goes on for that.
func (s *Service) powerOff(v *vm) error {
	ctx, cancel := context.WithTimeout(s.quit, shutdownTimeout)
	defer cancel()
	if err := v.takeTurn(ctx); err != nil {
		return err
	}
	defer v.endTurn()
	if v.isSuspended() {
		if err := v.machine.Resume(ctx); err != nil {
			return err
		}
		v.mu.Lock()
		v.suspended = false
		v.mu.Unlock()
	}
	return v.agent.PowerOff(ctx)
}

// shutdownGrace is what the guest itself gives its processes to end.
const shutdownGrace = 15 * time.Second

func endsWithin(ctx context.Context, m *vmm.Machine, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-m.Done():
		return true
	case <-t.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// remove takes what is left of a VM away, tells its owner and frees its
// place.
func (s *Service) remove(v *vm) {
	if v.agent != nil {
		v.agent.Close()
	}
	v.closePassages()
	crash.At(crash.BeforeRemoval)
	v.closeLog()
	if err := s.removeDir(v.dir); err != nil {
		v.log.Error("remove the VM's directory", "err", err)
	}
	s.removeTap(v)
	crash.At(crash.DirRemoved)
	// Nobody finds it any more, and only then its owner is told; but its place
	// is taken until that is done, so that signals of a next one come after.
	// The record goes last: what this service does not get to tell, the next
	// one does.
	v.setStatus(pb.VmStatus_VM_STATUS_STOPPED)
	if v.announced {
		s.notifyStopped(v)
		s.emit(v, "VmStoppedSignal", &pb.VmStoppedSignal{Name: v.key.name, OwnerId: v.owner.Word,
			Cid: int64(v.cid), Reason: v.stopReason()})
	}
	crash.At(crash.StoppedAnnounced)
	s.removeRecord(v)
	crash.At(crash.RecordRemoved)
	s.mu.Lock()
	delete(s.vms, v.key)
	s.nets.release(v.net)
	s.nets.releaseSubnet(v.subnet)
	s.journal.note(v.key.uid, vmChanged, v.describe())
	s.mu.Unlock()
	close(v.gone)
}

func (s *Service) removeRecord(v *vm) {
	v.recording.Lock()
	defer v.recording.Unlock()
	if err := os.Remove(s.recordPath(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.log.Error("remove the VM's record", "err", err)
	}
}

func (s *Service) emitStopping(v *vm) {
	s.notifyStopping(v)
	s.emit(v, "VmStoppingSignal", &pb.VmStoppingSignal{Name: v.key.name, OwnerId: v.owner.Word, Cid: int64(v.cid)})
}

// A record is what a restarted service must know of a VM; the supervisor
// knows the rest.
type record struct {
	UID    uint32      `json:"uid"`
	Label  string      `json:"label,omitempty"`
	Name   string      `json:"name"`
	Word   string      `json:"owner"`
	Type   int32       `json:"type"`
	CID    uint32      `json:"cid"`
	Net    vmm.Network `json:"network"`
	Memory int64       `json:"memory"`
	CPUs   int         `json:"cpus,omitempty"`
	Since  time.Time   `json:"since,omitzero"`
	Token  string      `json:"token,omitempty"`
	Disk   ownDisk     `json:"disk,omitzero"`
	Sparse bool        `json:"sparse,omitempty"`
	Image  string      `json:"image,omitempty"`
	Asleep bool        `json:"asleep,omitempty"`
	State  recordState `json:"state"`
	Disks  []diskUse   `json:"disks,omitempty"`
	// Subnet is the containers', Tremplin whether their manager is there.
	Subnet   netip.Prefix  `json:"subnet,omitzero"`
	Tremplin tremplinState `json:"tremplin,omitempty"`
	// Processes are not known before they run.
	Processes vmm.Processes `json:"processes"`
}

type recordState string

const (
	recordStarting recordState = "starting" // of no use to a restarted service
	recordRunning  recordState = "running"
)
