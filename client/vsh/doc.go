// Package vsh is the client of shells in a VM: it asks the concierge for a
// stream to the VM's vshd and runs one session of ChromeOS's vsh protocol on
// it, between the caller's standard files and a process in the guest.
//
// It owns the terminal's mode and the process's signals while a session runs,
// and gives both back in every way out. The commands vsh and vmc call it.
package vsh
