// Package vmm runs virtual machines, each under a supervisor of its own.
//
// The supervisor (the program auberge-vm) starts the processes of one VM, ends
// all of them when one dies, keeps the tail of the guest's console, holds the
// host's listening vsock sockets and leaves an exit record. It serves a
// control socket in the VM's directory. A daemon only ever talks to that
// socket, so that VMs outlive daemons: Launch starts a supervisor and hands it
// a Spec with the files it names, Attach finds one again.
//
// Where there is a service manager, a supervisor can be a unit of its
// (Launcher.Units): it then makes its sockets itself, in the unit's directory,
// and the exit record goes to a file that the daemon has opened.
//
// Which hypervisor runs is a Driver's business; vmm/qemu is the first. The
// package knows nothing of buses, owners or guest agents.
package vmm
