package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/seqpacket"
	"github.com/auberge-vm/auberge/vsock"
)

// stageGrace is how long the hypervisor has to follow one way of ending it
// before the next, harder one: its monitor, SIGTERM, SIGKILL.
const stageGrace = 10 * time.Second

// launchGrace is how long a supervisor waits for its VM: the daemon that
// started it may have died before it could say more.
const launchGrace = 30 * time.Second

// consoleLines is how much of the console of a VM that did not end in order
// goes into the log.
const consoleLines = 50

// unknownRequest begins what a supervisor says of what a newer version asks.
const unknownRequest = "unknown request"

// acceptPause is how long a supervisor that is short of something, descriptors
// for example, waits before it accepts again.
const acceptPause = 100 * time.Millisecond

// SupervisorConfig is what a supervisor needs to begin.
type SupervisorConfig struct {
	// Dir is the VM's directory and the working directory of the process.
	Dir string
	// Control is the listening control socket.
	Control *net.UnixListener
	// Lifeline is the writing end of a pipe that every process of the VM
	// holds, so that whoever reads the other end, LifelineReader, knows when
	// the last of them has gone. Nothing is ever written.
	Lifeline, LifelineReader *os.File
	// PeerUID is the one uid, besides root, that may use the control socket.
	PeerUID uint32
	Driver  Driver
	// Backend is the program that serves vsock in user mode.
	Backend string
	Log     *slog.Logger
}

// A Supervisor owns the processes of one VM.
type Supervisor struct {
	cfg     SupervisorConfig
	console *Ring
	// named is the log once it is known whose VM this is.
	named atomic.Pointer[slog.Logger]

	mu        sync.Mutex
	launched  bool
	stopping  string // why, when a stop was asked
	spec      *Spec
	hyper     *exec.Cmd
	monitor   Monitor
	backend   *child
	endpoints map[uint32]*os.File
	order     []uint32
	// extra are the ports for which somebody else listens, or did.
	extra  map[uint32]bool
	paused bool
	// dials is how many streams wait for the guest's answer.
	dials int
	// record is where the exit record is to be written, if not in Dir.
	record *os.File
	// hyperEnded: there is no hypervisor to be ended any more.
	hyperEnded bool
	// endProbe ends a probe.
	endProbe context.CancelFunc

	// stageGrace, launchGrace and backendReady, but in tests.
	grace, orphan, ready time.Duration

	once sync.Once
	// ended is closed when exit is set and recorded.
	ended chan struct{}
	exit  Exit
	// start hands functions to the goroutine whose thread lives as long as
	// the supervisor: parent-death signals are tied to that thread.
	start chan func()
	conns sync.WaitGroup
}

// NewSupervisor returns a supervisor that has started nothing yet.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	s := &Supervisor{
		cfg:       cfg,
		console:   NewRing(consoleSize),
		endpoints: map[uint32]*os.File{},
		extra:     map[uint32]bool{},
		grace:     stageGrace,
		orphan:    launchGrace,
		ready:     backendReady,
		ended:     make(chan struct{}),
		start:     make(chan func()),
	}
	s.named.Store(cfg.Log)
	return s
}

func (s *Supervisor) log() *slog.Logger { return s.named.Load() }

// Run serves the control socket until the VM has ended or ctx is done, which
// ends the VM. It must be called from the main goroutine with its OS thread
// locked.
func (s *Supervisor) Run(ctx context.Context) error {
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		s.accept()
	}()
	orphaned := time.NewTimer(s.orphan)
	defer orphaned.Stop()
	for {
		select {
		case <-orphaned.C:
			if !s.isLaunched() {
				s.finish(Exit{Reason: ExitStopped, Message: "the supervisor was given no VM"})
			}
		case f := <-s.start:
			f()
		case <-ctx.Done():
			s.stop("the supervisor was told to end")
			if !s.isLaunched() {
				s.finish(Exit{Reason: ExitStopped, Message: "the supervisor was told to end before it had a VM"})
			}
			ctx = context.WithoutCancel(ctx)
		case <-s.ended:
			s.cfg.Control.Close()
			<-accepted
			s.conns.Wait()
			for _, f := range s.endpoints {
				f.Close()
			}
			return nil
		}
	}
}

func (s *Supervisor) isLaunched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.launched
}

func (s *Supervisor) accept() {
	for {
		c, err := s.cfg.Control.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log().Error("accept on the control socket", "err", err)
			s.endsWithin(acceptPause)
			continue
		}
		s.conns.Go(func() {
			defer c.Close()
			s.serve(c)
		})
	}
}

func (s *Supervisor) serve(c *net.UnixConn) {
	c.SetReadDeadline(time.Now().Add(s.grace))
	var req request
	files, err := receivePacket(c, &req)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.log().Warn("bad control request", "err", err)
		}
		return
	}
	defer closeAll(files)
	c.SetReadDeadline(time.Time{})
	uid, err := peerUID(c)
	if err != nil || (uid != s.cfg.PeerUID && uid != 0) {
		// Refused only now: closed with its request unread, the connection
		// would end in a reset that overtakes the answer.
		s.log().Warn("refused a control connection", "uid", uid, "err", err)
		sendPacket(c, reply{Error: fmt.Sprintf("uid %d may not control this VM", uid)}, nil)
		return
	}
	r, out := s.handle(&req, files)
	if req.Op == opListen || req.Op == opDial {
		defer closeAll(out) // the caller's alone; all others are kept
	}
	if err := sendPacket(c, r, out); err != nil {
		if req.Op == opDial {
			return // gave up meanwhile, or was killed
		}
		s.log().Warn("answer a control request", "op", req.Op, "err", err)
		if req.Op == opPause {
			// Whoever asked has given up, and would take the VM for running.
			if err := s.setPaused(false); err != nil {
				s.log().Error("undo a pause that nobody knows of", "err", err)
			}
		}
		return
	}
	if req.Op == opWatch {
		s.watch(c)
	}
}

func (s *Supervisor) handle(req *request, files []*os.File) (reply, []*os.File) {
	fail := func(err error) (reply, []*os.File) { return reply{Error: err.Error()}, nil }
	switch req.Op {
	case opLaunch:
		if err := s.launch(req, files); err != nil {
			return fail(err)
		}
		return reply{Status: s.status()}, nil
	case opProbe:
		why, err := s.probe(files)
		if err != nil {
			return fail(err)
		}
		return reply{NoKVM: why}, nil
	case opStatus:
		return reply{Status: s.status()}, []*os.File{s.cfg.LifelineReader}
	case opWatch:
		return reply{Status: s.status()}, nil
	case opEndpoints:
		s.mu.Lock()
		defer s.mu.Unlock()
		var out []*os.File
		for _, p := range s.order {
			out = append(out, s.endpoints[p])
		}
		return reply{Ports: s.order}, out
	case opConsole:
		return reply{Console: s.console.Tail()}, nil
	case opStop:
		s.stop(req.Reason)
		return reply{Status: s.status()}, nil
	case opPause, opResume:
		if err := s.setPaused(req.Op == opPause); err != nil {
			return fail(err)
		}
		return reply{Status: s.status()}, nil
	case opResize:
		if err := s.resizeDisk(req.Disk, req.Size); err != nil {
			return fail(err)
		}
		return reply{Status: s.status()}, nil
	case opListen:
		f, err := s.listenFor(req.Port)
		if err != nil {
			return fail(err)
		}
		return reply{Ports: []uint32{req.Port}}, []*os.File{f}
	case opDial:
		f, err := s.dialGuest(req.Port)
		if errors.Is(err, vsock.ErrRefused) {
			return reply{Refused: true}, nil
		}
		if err != nil {
			return fail(err)
		}
		return reply{}, []*os.File{f}
	}
	return fail(fmt.Errorf("%s %q", unknownRequest, req.Op))
}

// watch keeps the connection until the VM has ended, then sends the exit
// record. A watcher says nothing more: what it does next is to go away.
func (s *Supervisor) watch(c *net.UnixConn) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		var b [1]byte
		c.Read(b[:])
	}()
	defer func() {
		c.SetReadDeadline(time.Unix(1, 0))
		<-left
	}()
	select {
	case <-s.ended:
	case <-left:
		return
	}
	c.SetWriteDeadline(time.Now().Add(time.Second))
	if err := sendPacket(c, reply{Exit: &s.exit}, nil); err != nil {
		s.log().Info("a watcher has gone", "err", err)
	}
}

func (s *Supervisor) status() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Status{Spec: s.spec, Paused: s.paused}
	if s.hyper != nil && s.hyper.Process != nil {
		st.PID = s.hyper.Process.Pid
	}
	return st
}

// launch starts the VM's processes. A failure ends the supervisor, which has
// no other purpose.
func (s *Supervisor) launch(req *request, files []*os.File) error {
	if err := s.begin(); err != nil {
		return err
	}
	err := s.startRequested(req, files)
	if err != nil {
		reason := ExitCrashed
		switch s.stopReason() {
		case "":
		case backendDied:
			reason = ExitBackend
		default:
			reason = ExitStopped
		}
		s.endBackend()
		s.finish(Exit{Reason: reason, Message: err.Error()})
	}
	return err
}

// begin lets a supervisor be given something to do once.
func (s *Supervisor) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.launched {
		return errors.New("this supervisor has already been given a VM")
	}
	s.launched = true
	return nil
}

func (s *Supervisor) startRequested(req *request, files []*os.File) error {
	spec := req.Spec
	if spec == nil {
		return errors.New("the request names no VM")
	}
	s.named.Store(s.cfg.Log.With("vm", cleanLine(spec.Name), "owner", cleanLine(spec.Owner)))
	if req.Record {
		if len(files) == 0 {
			return errors.New("the exit record's descriptor is missing")
		}
		last := len(files) - 1
		record, err := duplicate(files[last])
		if err != nil {
			return fmt.Errorf("keep the exit record: %w", err)
		}
		s.mu.Lock()
		s.record = record
		s.mu.Unlock()
		files = files[:last]
	}
	if err := spec.Check(len(files)); err != nil {
		return err
	}
	return s.startAll(spec, files)
}

// duplicate returns a descriptor of its own for an open file, which no process
// inherits.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := seqpacket.RawFD(f)
	if err != nil {
		return nil, err
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}

// probe finds out whether KVM runs guests here, and says why not. A supervisor
// that was asked ends: it was started for that.
func (s *Supervisor) probe(files []*os.File) (string, error) {
	p, ok := s.cfg.Driver.(Prober)
	switch {
	case !ok:
		return "", fmt.Errorf("probe KVM: %w by this hypervisor", errors.ErrUnsupported)
	case len(files) != 1:
		return "", fmt.Errorf("probe KVM: %d files came with the request, not one kernel", len(files))
	}
	if err := s.begin(); err != nil {
		return "", err
	}
	defer s.finish(Exit{Reason: ExitStopped, Message: "the probe is over"})
	fd, err := seqpacket.RawFD(files[0])
	if err != nil {
		return "", err
	}
	// The driver's child is to die with the thread that starts it, which must
	// not end before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	s.endProbe = cancel
	stopping := s.stopping != ""
	s.mu.Unlock()
	if stopping {
		cancel()
	}
	err = p.Probe(ctx, fmt.Sprintf("/proc/self/fd/%d", fd))
	runtime.KeepAlive(files)
	if err != nil {
		return err.Error(), nil
	}
	return "", nil
}

// stopReason says why the VM has to end, if it has.
func (s *Supervisor) stopReason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

func (s *Supervisor) startAll(spec *Spec, files []*os.File) error {
	if spec.Vsock.Mode == vsock.ModeUser {
		if err := s.listen(spec.Vsock.Ports); err != nil {
			return err
		}
		if err := s.startBackend(spec); err != nil {
			return err
		}
	}
	monitor, err := listenFile(monitorSocket)
	if err != nil {
		return err
	}
	defer monitor.Close()
	cmd, err := s.cfg.Driver.Command(spec, files, monitor)
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	errs := NewRing(8 << 10)
	cmd.Stderr = errs
	if why := s.stopReason(); why != "" {
		return errors.New(why)
	}
	if err := s.startChild(cmd); err != nil {
		return fmt.Errorf("start the hypervisor: %w", err)
	}
	s.mu.Lock()
	s.spec, s.hyper = spec, cmd
	stopped := s.stopping != ""
	s.mu.Unlock()
	s.log().Info("hypervisor started", "pid", cmd.Process.Pid)
	if stopped {
		// Whoever asked for it found nothing to end.
		go s.endHypervisor()
	}

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(s.console, out)
	}()
	attached := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	go func() {
		defer close(attached)
		s.attachMonitor(ctx)
	}()
	go func() {
		<-drained
		err := cmd.Wait()
		cancel()
		<-attached
		s.hypervisorEnded(err, errs)
	}()
	return nil
}

// startChild starts a command on the long-lived thread, so that the kernel
// kills the child when the supervisor dies and not before.
func (s *Supervisor) startChild(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.ExtraFiles = append(cmd.ExtraFiles, s.cfg.Lifeline)
	done := make(chan error, 1)
	select {
	case s.start <- func() { done <- cmd.Start() }:
		return <-done
	case <-s.ended:
		return errors.New("the supervisor is ending")
	}
}

func (s *Supervisor) attachMonitor(ctx context.Context) {
	m, err := s.cfg.Driver.Monitor(ctx, monitorSocket)
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) {
			s.log().Warn("the hypervisor's monitor does not answer", "err", err)
		}
		return
	}
	s.mu.Lock()
	s.monitor = m
	s.mu.Unlock()
}

// hypervisorEnded writes the exit record; everything else of the VM ends
// with it.
func (s *Supervisor) hypervisorEnded(err error, stderr *Ring) {
	s.mu.Lock()
	stopping, monitor, unit := s.stopping, s.monitor, s.record != nil
	s.hyperEnded = true
	s.mu.Unlock()
	guest := err == nil
	if monitor != nil {
		guest = monitor.Ended()
		monitor.Close()
	}
	s.endBackend()
	e := Exit{Reason: ExitCrashed, Console: s.console.Tail()}
	switch {
	case stopping == backendDied:
		e.Reason, e.Message = ExitBackend, stopping
	case stopping != "":
		e.Reason, e.Message = ExitStopped, stopping
	case guest:
		e.Reason, e.Message = ExitGuest, "the guest powered off"
	default:
		e.Message = "the hypervisor ended: " + describe(err)
		if unit && ranOutOfMemory() {
			e.Message += " (it needed more memory than the VM's unit may have, and the kernel killed it)"
		}
		if t := LastLines(stderr.Tail(), 5); t != "" {
			e.Message += ": " + t
		}
	}
	s.finish(e)
}

func describe(err error) string {
	if err == nil {
		return "exit status 0 without the guest's doing"
	}
	return err.Error()
}

// finish records the end, once.
func (s *Supervisor) finish(e Exit) {
	s.once.Do(func() {
		e.Time = time.Now()
		s.exit = e
		s.mu.Lock()
		record := s.record
		s.mu.Unlock()
		if err := writeExit(record, s.cfg.Dir, e); err != nil {
			s.log().Error("write the exit record", "err", err)
		}
		if e.Reason == ExitCrashed || e.Reason == ExitBackend {
			for line := range strings.Lines(LastLines(e.Console, consoleLines)) {
				s.log().Warn("last of the guest's console: " + strings.TrimSuffix(line, "\n"))
			}
		}
		level := slog.LevelInfo
		if e.Reason == ExitCrashed || e.Reason == ExitBackend {
			level = slog.LevelWarn
		}
		s.log().Log(context.Background(), level, "VM ended", "reason", e.Reason, "message", e.Message)
		close(s.ended)
	})
}

// stop ends the VM in the background; one that has no hypervisor yet ends as
// soon as it has. The first reason counts.
func (s *Supervisor) stop(why string) {
	if why == "" {
		why = "stopped"
	}
	s.mu.Lock()
	first := s.stopping == ""
	if first {
		s.stopping = why
	}
	running, endProbe := s.hyper != nil && !s.hyperEnded, s.endProbe
	s.mu.Unlock()
	if endProbe != nil {
		endProbe()
	}
	if first && running {
		go s.endHypervisor()
	}
}

// endHypervisor ends the hypervisor by its monitor, then SIGTERM, then
// SIGKILL.
func (s *Supervisor) endHypervisor() {
	s.mu.Lock()
	hyper, monitor := s.hyper, s.monitor
	s.mu.Unlock()
	s.thaw()
	if monitor != nil {
		ctx, cancel := context.WithTimeout(context.Background(), s.grace)
		err := monitor.Quit(ctx)
		cancel()
		if err == nil && s.endsWithin(s.grace) {
			return
		}
		s.log().Warn("the hypervisor did not quit", "err", err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := hyper.Process.Signal(sig); errors.Is(err, os.ErrProcessDone) {
			return
		}
		if s.endsWithin(s.grace) {
			return
		}
		s.log().Warn("the hypervisor ignores a signal", "signal", sig)
	}
}

func (s *Supervisor) endsWithin(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ended:
		return true
	case <-t.C:
		return false
	}
}

// listen creates the host's listening sockets before the guest runs.
func (s *Supervisor) listen(ports []uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ports {
		if _, ok := s.endpoints[p]; ok {
			return fmt.Errorf("port %s is asked for twice", strconv.FormatUint(uint64(p), 10))
		}
		f, err := listenFile(vsock.EndpointPath(VsockSocket, p))
		if err != nil {
			return err
		}
		s.endpoints[p] = f
		s.order = append(s.order, p)
	}
	return nil
}

// listenFile returns a listening Unix socket bound in the working directory.
func listenFile(name string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}
