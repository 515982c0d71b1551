// Package concierge owns virtual machines and their disk images: it starts,
// suspends and stops VMs for their owners, tells their guests what changes on
// the host, knows them again after a restart, and keeps each owner's disk
// store and the VMs' logs.
//
// The package sees no bus. What it needs of the outside (opening files with a
// caller's rights, announcing what happens to a VM) it declares as small
// interfaces; who may call what has been decided when a call arrives, and a
// request comes with the Subject it is for. An error returned by a method is
// meant for the caller to read.
package concierge
