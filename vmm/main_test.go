package vmm_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

func init() {
	// A supervisor's children die with the thread that started them.
	runtime.LockOSThread()
}

// TestMain plays every process of a VM: the real supervisor, with a fake
// driver, hypervisor and vsock backend, in which faults can be put.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "run":
			os.Exit(supervise())
		case "unit":
			os.Exit(superviseUnit())
		case "hypervisor":
			os.Exit(hypervise(os.Args[2]))
		case "--guest-cid":
			os.Exit(serveVsock(os.Args[4], os.Args[6]))
		case "launcher":
			os.Exit(launchAndStay(os.Args[2]))
		case "impostor":
			os.Exit(impersonate())
		case "ask":
			os.Exit(ask(os.Args[2]))
		}
	}
	runtime.UnlockOSThread()
	goleak.VerifyTestMain(m)
}

// Faults of the backend, and times, come in the environment.
const (
	backendEnv = "VMM_TEST_BACKEND" // dies, silent, waits:DIR
	monitorEnv = "VMM_TEST_MONITOR" // none, hangs
	// What the supervisor waits for, one minute unless they are set.
	graceEnv, orphanEnv, readyEnv = "VMM_TEST_GRACE", "VMM_TEST_ORPHAN", "VMM_TEST_READY"
)

func duration(env string) time.Duration {
	d, err := time.ParseDuration(os.Getenv(env))
	if err != nil {
		return patience
	}
	return d
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// supervise is daemon/auberge-vm with the fake driver.
func supervise() int {
	control := os.NewFile(3, "control")
	l, err := net.FileListener(control)
	if err != nil {
		return fatal(err)
	}
	control.Close()
	unix.CloseOnExec(4)
	unix.CloseOnExec(5)
	uid, err := strconv.ParseUint(os.Args[3], 10, 32)
	if err != nil {
		return fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		return fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := vmm.NewSupervisor(vmm.SupervisorConfig{Dir: dir, Control: l.(*net.UnixListener), PeerUID: uint32(uid),
		Lifeline: os.NewFile(4, "lifeline"), LifelineReader: os.NewFile(5, "lifeline reader"),
		Driver: driver{self}, Backend: self, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	s.SetGrace(duration(graceEnv), duration(orphanEnv), duration(readyEnv))
	if err := s.Run(ctx); err != nil {
		return fatal(err)
	}
	return 0
}

// A driver runs this program as the hypervisor; what that does is in the
// spec's kernel command line.
type driver struct{ program string }

func (d driver) Command(spec *vmm.Spec, files []*os.File, monitor *os.File) (*exec.Cmd, error) {
	if spec.Cmdline == "no command" {
		return nil, fmt.Errorf("there is no such hypervisor")
	}
	program := d.program
	if spec.Cmdline == "no program" {
		program = "/nowhere/hypervisor"
	}
	cmd := exec.Command(program, "hypervisor", spec.Cmdline)
	cmd.ExtraFiles = append(append([]*os.File{}, files...), monitor)
	// The last of them is the monitor.
	cmd.Env = append(os.Environ(), "MONITOR_FD="+strconv.Itoa(3+len(files)))
	return cmd, nil
}

func (driver) Monitor(ctx context.Context, path string) (vmm.Monitor, error) {
	if os.Getenv(monitorEnv) == "none" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	m := &monitor{c: c, closed: make(chan struct{})}
	go m.read()
	return m, nil
}

type monitor struct {
	c      net.Conn
	closed chan struct{}
	guest  bool
}

func (m *monitor) read() {
	defer close(m.closed)
	b, _ := io.ReadAll(m.c)
	m.guest = strings.Contains(string(b), "guest")
}

func (m *monitor) Quit(ctx context.Context) error {
	if os.Getenv(monitorEnv) == "hangs" {
		<-ctx.Done()
		return ctx.Err()
	}
	_, err := io.WriteString(m.c, "quit\n")
	return err
}

func (m *monitor) Ended() bool {
	<-m.closed
	return m.guest
}

func (m *monitor) Close() error { return m.c.Close() }

// hypervise does what a list of words says, and otherwise waits for "quit" on
// the monitor.
func hypervise(words string) int {
	fd, _ := strconv.Atoi(os.Getenv("MONITOR_FD"))
	f := os.NewFile(uintptr(fd), "monitor")
	l, err := net.FileListener(f)
	if err != nil {
		return fatal(err)
	}
	f.Close()
	for word := range strings.FieldsSeq(words) {
		verb, arg, _ := strings.Cut(word, ":")
		switch verb {
		case "print":
			fmt.Println(arg)
		case "flood":
			n, _ := strconv.Atoi(arg)
			line := strings.Repeat("x", 1023) + "\n"
			for range n {
				fmt.Print(line)
			}
		case "complain":
			fmt.Fprintln(os.Stderr, arg)
		case "exit":
			code, _ := strconv.Atoi(arg)
			return code
		case "poweroff":
			c, err := l.Accept()
			if err != nil {
				return fatal(err)
			}
			io.WriteString(c, "guest")
			return 0
		case "leave":
			if _, err := l.Accept(); err != nil {
				return fatal(err)
			}
			return 0
		case "deaf":
			signal.Ignore(syscall.SIGTERM)
		case "straggler":
			// It keeps whatever this process inherited.
			if err := exec.Command("/bin/sh", "-c", "exec sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > "+arg).Run(); err != nil {
				return fatal(err)
			}
		}
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fatal(err)
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		if line == "quit\n" {
			return 0
		}
		c.Close()
	}
}

// serveVsock is a vsock backend whose guest sends back what it is sent.
func serveVsock(device, path string) int {
	fault, arg, _ := strings.Cut(os.Getenv(backendEnv), ":")
	switch fault {
	case "dies":
		return fatal(fmt.Errorf("the backend is out of order"))
	case "waits":
		// It says that it runs, and goes on when it is told to.
		if f, err := os.OpenFile(filepath.Join(arg, "runs"), os.O_WRONLY, 0); err == nil {
			f.Close()
		}
		if f, err := os.Open(filepath.Join(arg, "go")); err == nil {
			f.Close()
		}
	}
	guest, err := net.Listen("unix", path)
	if err != nil {
		return fatal(err)
	}
	if fault == "silent" {
		unix.Pause()
	}
	if _, err := net.Listen("unix", device); err != nil {
		return fatal(err)
	}
	arrived, release, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	for {
		c, err := guest.Accept()
		if err != nil {
			return fatal(err)
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			late := false
			switch line, _ := r.ReadString('\n'); line {
			default:
				return
			case "CONNECT 9001\n":
			case "CONNECT 9002\n": // answered late
				arrived <- struct{}{}
				<-release
				late = true
			case "CONNECT 9003\n": // once the one before is there
				<-arrived
			case "CONNECT 9004\n": // once it is answered
				release <- struct{}{}
				<-answered
			}
			// As vhost-device-vsock, it does not survive an answer to nobody.
			if _, err := io.WriteString(c, "OK 1\n"); err != nil {
				os.Exit(fatal(err))
			}
			if late {
				answered <- struct{}{}
			}
			io.Copy(c, r)
		}()
	}
}

// newLauncher starts supervisors of this program.
func newLauncher(t testing.TB) *vmm.Launcher {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &vmm.Launcher{Program: self}
	l.SetGrace(patience)
	return l
}

// vmSpec is a spec of a VM that does what the words say.
func vmSpec(words string) *vmm.Spec {
	s := spec()
	s.Kernel, s.Initrd, s.Disks, s.Cmdline = 0, vmm.NoFile, nil, words
	return s
}

// launchAndStay launches a VM and waits to be killed.
func launchAndStay(dir string) int {
	self, err := os.Executable()
	if err != nil {
		return fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return fatal(err)
	}
	l := &vmm.Launcher{Program: self}
	if _, err := l.Launch(context.Background(), dir, vmSpec(""), []*os.File{null}); err != nil {
		return fatal(err)
	}
	fmt.Println("running")
	unix.Pause()
	return 0
}

var _ vmm.Driver = driver{}

// guestPort is where the fake guest listens.
const guestPort = vsock.PortVshd

// impersonate serves the control socket on descriptor 3 as an attacker would
// who has the VMs' user: for every request it sends its environment's reply.
func impersonate() int {
	l, err := net.FileListener(os.NewFile(3, "control"))
	if err != nil {
		return fatal(err)
	}
	for {
		c, err := l.(*net.UnixListener).AcceptUnix()
		if err != nil {
			return fatal(err)
		}
		var req vmm.Request
		if _, err := vmm.ReceivePacket(c, &req); err != nil {
			continue
		}
		answer, files := os.Getenv("REPLY_"+string(req.Op)), 1
		if n, err := strconv.Atoi(os.Getenv("FILES_" + string(req.Op))); err == nil {
			files = n
		}
		fds := make([]int, files)
		if req.Op == "endpoints" && os.Getenv("SOCKETS") != "" {
			for i := range fds {
				fds[i] = 3 // a listening socket
			}
		}
		_, _, err = c.WriteMsgUnix([]byte(answer), unix.UnixRights(fds...), nil)
		if err != nil {
			return fatal(err)
		}
		if req.Op != "watch" {
			c.Close()
		}
	}
}

// ask asks a supervisor for its status and prints what came of it.
func ask(socket string) int {
	_, err := vmm.Call(context.Background(), socket, vmm.Request{Op: vmm.OpStatus}, nil)
	fmt.Print(err)
	return 0
}
