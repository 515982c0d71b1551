// Auberge-vm supervises the processes of one virtual machine. Daemons start
// it, one per VM, and talk to it over the control socket that it inherits as
// descriptor 3; people have no use for it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/qemu"
)

// Descriptors that whoever starts a supervisor passes.
const (
	controlFD        = 3 // the listening control socket
	lifelineFD       = 4 // writing end of the lifeline
	lifelineReaderFD = 5 // its reading end, for those who attach later
)

func init() {
	// Children die with the thread that started them: it is the main one.
	runtime.LockOSThread()
}

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "auberge-vm:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "auberge-vm",
		Short:         "Supervise one virtual machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var p programs
	root.PersistentFlags().StringVar(&p.qemu.Path, "qemu", "qemu-system-x86_64", "the QEMU program")
	root.PersistentFlags().StringVar(&p.backend, "vsock-backend", "vhost-device-vsock", "the program that serves vsock in user mode")
	root.AddCommand(runCommand(&p), unitCommand(&p), probeCommand(&p), cleanCommand())
	return root
}

// programs are what a supervisor starts. Every command takes the flags for
// all of them, so that a daemon passes each the same.
type programs struct {
	qemu    qemu.Driver
	backend string
}

func runCommand(p *programs) *cobra.Command {
	var peerUID uint32
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve the control socket on descriptor 3, with the VM's directory as the working directory",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return run(peerUID, p.qemu, p.backend)
		},
	}
	cmd.Flags().Uint32Var(&peerUID, "peer-uid", 0, "the uid that may use the control socket")
	return cmd
}

// cleanCommand lets a daemon have removed what only the VMs' user can remove.
func cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   vmm.CleanCommand,
		Short: "Remove what a VM has left in the working directory",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return vmm.CleanDir(".") },
	}
}

func run(peerUID uint32, driver vmm.Driver, backend string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := protect(log); err != nil {
		return err
	}
	control, err := controlListener()
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	return supervise(vmm.SupervisorConfig{
		Dir: dir, Control: control, Lifeline: inherited(lifelineFD, "lifeline"),
		LifelineReader: inherited(lifelineReaderFD, "lifeline reader"), PeerUID: peerUID, Driver: driver, Backend: backend, Log: log,
	})
}

// protect prepares the process for what it will start.
func protect(log *slog.Logger) error {
	// The daemon shares a group with this process, or is on the directory's
	// access list, and needs the sockets; nobody else does.
	unix.Umask(0o007)
	// A hypervisor that was broken into runs as the same user and must not be
	// able to trace its supervisor.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	raiseFileLimit(log)
	return nil
}

func supervise(cfg vmm.SupervisorConfig) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return vmm.NewSupervisor(cfg).Run(ctx)
}

// raiseFileLimit gives the children every descriptor they may have: at 1,024
// the vsock backend stalls near 1,000 streams.
func raiseFileLimit(log *slog.Logger) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		log.Warn("raise the limit of open files", "err", err)
	}
}

// inherited takes over a descriptor, and keeps it from processes to which it
// is not given on purpose.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

func controlListener() (*net.UnixListener, error) {
	f := inherited(controlFD, "control")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no listening socket (auberge-vm is started by vm_concierge): %w", controlFD, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("descriptor %d is no Unix socket", controlFD)
	}
	return u, nil
}
