// Package qemu drives QEMU for package vmm: a q35 machine with no default
// devices, an uncompressed kernel, memory that a vhost-user backend can share,
// and QEMU's own system call filter. QEMU is controlled over QMP.
package qemu
