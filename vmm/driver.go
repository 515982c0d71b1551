package vmm

import (
	"context"
	"os"
	"os/exec"
)

// A Driver knows one hypervisor. It gives the command that runs a Spec and
// speaks to the hypervisor's monitor; the supervisor owns the process.
type Driver interface {
	// Command returns the command for a checked Spec. Descriptors that the
	// hypervisor needs are in its ExtraFiles; standard input and output are
	// the supervisor's to set, the guest's console comes on standard output.
	// The monitor is a listening Unix socket that the hypervisor inherits.
	// The working directory is the VM's, where the vsock backend's socket
	// BackendSocket is.
	Command(spec *Spec, files []*os.File, monitor *os.File) (*exec.Cmd, error)
	// Monitor connects to the monitor of a started command.
	Monitor(ctx context.Context, path string) (Monitor, error)
}

// A Monitor controls a running hypervisor.
type Monitor interface {
	// Quit ends the hypervisor at once, without asking the guest.
	Quit(ctx context.Context) error
	// Ended waits until the hypervisor has closed the monitor and says
	// whether the guest had powered off or reset by itself.
	Ended() bool
	Close() error
}

// A Prober is a Driver that can find out whether KVM runs guests, by starting
// one with a kernel. The error says why KVM cannot be used.
type Prober interface {
	Probe(ctx context.Context, kernel string) error
}

// A Pauser is a Monitor that can stop the VM's processors and let them go on.
// Both calls may be repeated.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// A DiskResizer is a Monitor that can change a disk's size under the guest's
// eyes. The disk is its place in the Spec; the size is in bytes.
type DiskResizer interface {
	ResizeDisk(ctx context.Context, disk int, size int64) error
}

// Names of files in a VM's directory.
const (
	BackendSocket = "vhost.sock"   // vhost-user socket of the vsock backend
	VsockSocket   = "vm.vsock"     // where the host dials the guest
	monitorSocket = "monitor.sock" // the hypervisor's monitor
	controlSocket = "control.sock" // the supervisor's
	exitFile      = "exit.json"    // the exit record
)
