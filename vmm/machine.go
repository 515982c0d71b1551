package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm/crash"
	"github.com/auberge-vm/auberge/vsock"
)

// A Launcher starts supervisors.
type Launcher struct {
	// Program is the path of auberge-vm.
	Program string
	// Args are further arguments for it.
	Args []string
	// Start starts the command as the user under which VMs run. The command's
	// own credentials are not set yet. Nil means cmd.Start.
	Start func(cmd *exec.Cmd) error
	// Units, where it is not nil, has VMs run as units of the service manager.
	// The other fields then do not count: it is the unit that says them.
	Units *Units

	grace time.Duration // stageGrace, but in tests
}

// A Machine is a VM as a daemon sees it: its directory and the supervisor
// behind the control socket there.
type Machine struct {
	Dir  string
	Spec *Spec

	// sockets is the directory that the supervisor works in.
	sockets string
	// unit is the VM's, empty where the supervisor is a process of ours.
	unit    string
	manager ServiceManager

	pid int
	// process is the supervisor, held by a pidfd.
	process *os.Process
	// lifeline ends when the last process of the VM has gone.
	lifeline  *os.File
	paused    bool
	listeners map[uint32]*vsock.Listener
	watcher   *net.UnixConn
	watched   chan struct{} // closed when nobody watches any more
	released  atomic.Bool
	grace     time.Duration

	done chan struct{}
	exit Exit
	// over ends right after done is closed.
	over   context.Context
	finish context.CancelFunc
}

// Launch starts a supervisor for the VM in dir and hands it the spec and the
// files that the spec counts on. On failure nothing of it runs any more; the
// exit record, if there is one, is still in dir. The files stay the caller's.
func (l *Launcher) Launch(ctx context.Context, dir string, spec *Spec, files []*os.File) (*Machine, error) {
	if l.Units != nil {
		return l.launchUnit(ctx, dir, spec, files)
	}
	m := newMachine(dir, l.grace)
	m.Spec = spec
	if err := l.startSupervisor(m); err != nil {
		return nil, err
	}
	if err := m.launch(ctx, files); err != nil {
		m.Kill()
		m.process.Wait()
		m.awaitProcesses()
		return nil, err
	}
	return m, nil
}

func newMachine(dir string, grace time.Duration) *Machine {
	m := &Machine{Dir: dir, sockets: dir, grace: cmp.Or(grace, stageGrace), watched: make(chan struct{}), done: make(chan struct{})}
	m.over, m.finish = context.WithCancel(context.Background())
	return m
}

func (l *Launcher) startSupervisor(m *Machine) error {
	// The socket exists before the supervisor does, so that nobody has to
	// wait for it: early requests queue.
	ctl, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(m.Dir, controlSocket), Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("create the VM's control socket: %w", err)
	}
	ctl.SetUnlinkOnClose(false)
	defer ctl.Close()
	f, err := ctl.File()
	if err != nil {
		return err
	}
	defer f.Close()
	log, err := os.OpenFile(filepath.Join(m.Dir, "supervisor.log"), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	lifeline, hold, err := makeLifeline()
	if err != nil {
		return err
	}
	defer hold.Close()
	cmd := exec.Command(l.Program, append([]string{"run", "--peer-uid", fmt.Sprint(os.Geteuid())}, l.Args...)...)
	cmd.Dir = m.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{f, hold, lifeline}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	crash.At(crash.BeforeSupervisor)
	if err := l.start(cmd); err != nil {
		lifeline.Close()
		return fmt.Errorf("start the VM's supervisor: %w", err)
	}
	crash.At(crash.SupervisorForked)
	m.lifeline, m.process = lifeline, cmd.Process
	return nil
}

// makeLifeline returns a pipe whose reading end takes deadlines wherever it is
// passed: files made by os.Pipe lose that when a process inherits them.
func makeLifeline() (read, write *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("make the VM's lifeline: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "lifeline"), os.NewFile(uintptr(p[1]), "lifeline"), nil
}

func (m *Machine) launch(ctx context.Context, files []*os.File) error {
	r, err := call(ctx, m.control(), request{Op: opLaunch, Spec: m.Spec, Record: m.unit != ""}, files)
	if err == nil {
		m.pid = r.Status.PID
		err = m.follow(ctx)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	// A supervisor that failed says why in its record.
	if e, xerr := ReadExit(m.Dir); xerr == nil {
		return errors.New(e.Message)
	}
	if gone(err) {
		return errors.New("the VM's supervisor was killed, and the VM has ended with it")
	}
	return err
}

// Attach finds the VM in dir again, which a daemon like this one has launched.
// The error is ErrGone when its supervisor is not there any more; its exit
// record then tells the rest.
func Attach(ctx context.Context, dir string) (*Machine, error) {
	return (&Launcher{}).Attach(ctx, dir)
}

// Attach finds the VM in dir again, which was launched as this launcher does.
func (l *Launcher) Attach(ctx context.Context, dir string) (*Machine, error) {
	m, err := l.machineIn(dir)
	if err != nil {
		return nil, err
	}
	if err := m.attach(ctx); err != nil {
		if m.lifeline != nil {
			m.lifeline.Close()
		}
		if gone(err) {
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
		return nil, err
	}
	return m, nil
}

func (m *Machine) attach(ctx context.Context) error {
	r, err := m.identify(ctx)
	if err != nil {
		return err
	}
	if r.Status.Spec == nil || r.Status.PID == 0 {
		// Whoever meant to give it one is not there any more.
		m.Kill()
		m.awaitProcesses()
		return fmt.Errorf("%w: the supervisor has no VM", ErrGone)
	}
	m.Spec, m.pid, m.paused = r.Status.Spec, r.Status.PID, r.Status.Paused
	return m.follow(ctx)
}

// identify gets hold of the supervisor and its lifeline.
func (m *Machine) identify(ctx context.Context) (*reply, error) {
	first, err := call(ctx, m.control(), request{Op: opStatus}, nil)
	if err != nil {
		return nil, err
	}
	if m.process, err = os.FindProcess(first.pid); err != nil {
		return nil, err
	}
	// That it still answers shows that the handle is not on a process which
	// got the number later.
	r, files, err := callForFiles(ctx, m.control(), request{Op: opStatus}, nil)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 || r.pid != first.pid || r.Status == nil {
		closeAll(files)
		return nil, errors.New("the VM's supervisor gave no sensible answer")
	}
	m.lifeline = files[0]
	return r, nil
}

// ErrGone says that a VM's supervisor does not run any more.
var ErrGone = errors.New("the VM has ended")

// follow takes the listening sockets and begins to watch for the VM's end.
func (m *Machine) follow(ctx context.Context) error {
	r, files, err := callForFiles(ctx, m.control(), request{Op: opEndpoints}, nil)
	if err != nil {
		return err
	}
	defer closeAll(files)
	if len(files) != len(r.Ports) {
		return fmt.Errorf("the VM's supervisor sent %d sockets for %d ports", len(files), len(r.Ports))
	}
	m.listeners = map[uint32]*vsock.Listener{}
	for i, port := range r.Ports {
		if m.listeners[port] != nil {
			m.closeListeners()
			return fmt.Errorf("the VM's supervisor sent two sockets for port %d", port)
		}
		l, err := net.FileListener(files[i])
		if err != nil {
			m.closeListeners()
			return fmt.Errorf("endpoint of port %d: %w", port, err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		m.listeners[port] = vsock.NewListener(l, m.guest(0), port)
	}
	if err := m.startWatching(ctx); err != nil {
		m.closeListeners()
		return err
	}
	return nil
}

func (m *Machine) startWatching(ctx context.Context) (err error) {
	if m.watcher, err = dialControl(ctx, m.control()); err != nil {
		return err
	}
	if err := sendPacket(m.watcher, request{Op: opWatch}, nil); err != nil {
		m.watcher.Close()
		return err
	}
	go m.watch()
	return nil
}

func (m *Machine) closeListeners() {
	for _, l := range m.listeners {
		l.Close()
	}
}

// watch ends when the supervisor reports the VM's end or vanishes.
func (m *Machine) watch() {
	// A supervisor that is a child of this process is reaped, and only now:
	// waiting for a running process takes a thread.
	defer m.process.Wait()
	defer close(m.watched)
	defer m.watcher.Close()
	for {
		var r reply
		files, err := receivePacket(m.watcher, &r)
		closeAll(files)
		switch {
		case m.released.Load():
			m.letGo()
			return
		case err != nil:
			e, xerr := ReadExit(m.Dir)
			if xerr != nil {
				e = Exit{Reason: ExitSupervisor, Message: "the VM's supervisor was killed", Time: time.Now()}
			}
			m.end(e)
			return
		case r.Exit != nil:
			m.end(*r.Exit)
			return
		}
	}
}

// awaitProcesses waits until no process of the VM is left: when the VM counts
// as ended, its disks are free.
func (m *Machine) awaitProcesses() {
	if m.lifeline == nil {
		return
	}
	m.lifeline.SetReadDeadline(time.Now().Add(m.grace))
	var b [1]byte
	m.lifeline.Read(b[:])
	m.lifeline.Close()
}

func (m *Machine) end(e Exit) {
	m.exit = e
	m.closeListeners()
	m.awaitProcesses()
	close(m.done)
	m.finish()
}

// Release lets go of a VM, which runs on and can be attached again. Its
// listeners are closed; Done is not any more.
func (m *Machine) Release() {
	m.released.Store(true)
	m.watcher.Close()
	<-m.watched
}

func (m *Machine) letGo() {
	m.closeListeners()
	m.lifeline.Close()
	m.process.Release()
}

func (m *Machine) control() string { return filepath.Join(m.sockets, controlSocket) }

func (m *Machine) guest(port uint32) vsock.Addr {
	return vsock.Addr{VM: m.Spec.ID, CID: m.Spec.Vsock.CID, Port: port}
}

// PID is the hypervisor's process ID.
func (m *Machine) PID() int { return m.pid }

// Done is closed when the VM has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// OnEnd has f called once Done is closed, in a goroutine of its own that is not
// there before.
func (m *Machine) OnEnd(f func()) { context.AfterFunc(m.over, f) }

// Exit is the exit record, once Done is closed.
func (m *Machine) Exit() Exit { return m.exit }

// Listener is the host's listening end of a port, nil for a port that was not
// asked for or in kernel mode. It is closed with the VM.
func (m *Machine) Listener(port uint32) *vsock.Listener { return m.listeners[port] }

// Console returns the tail of the guest's console.
func (m *Machine) Console(ctx context.Context) ([]byte, error) {
	select {
	case <-m.done:
		return m.exit.Console, nil
	default:
	}
	r, err := call(ctx, m.control(), request{Op: opConsole}, nil)
	if err != nil {
		return nil, err
	}
	return r.Console, nil
}

// Stop ends the VM without asking the guest and waits for its end. The reason
// goes into the exit record.
func (m *Machine) Stop(ctx context.Context, reason string) error {
	_, err := call(ctx, m.control(), request{Op: opStop, Reason: reason}, nil)
	if err == nil {
		select {
		case <-m.done:
			return nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	select {
	case <-m.done:
		return nil
	default:
		return err
	}
}

// Kill kills the supervisor, and with it every process of the VM: the last
// resort when it does not answer.
func (m *Machine) Kill() error {
	if m.unit != "" {
		ctx, cancel := context.WithTimeout(context.Background(), m.grace)
		defer cancel()
		return m.manager.KillUnit(ctx, m.unit)
	}
	return m.process.Kill()
}
