// Package doctor looks at whether this machine can run VMs, and says how to
// mend what is missing. It only reads: files below the host's root, the version
// of QEMU, and what the service says of itself by the functions it is given.
package doctor
