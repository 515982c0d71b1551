// Package maitred is the agent that runs as PID 1 of a VM and does what the
// host asks over vsock (vm_tools.Maitred).
//
// One binary boots the VM in two stages. The first is /init of the initramfs:
// it loads modules, mounts the root disk and moves there. The second is the
// system's PID 1: it mounts the rest, keeps services running, reaps, serves the
// host, and powers off in order. Unless a kernel parameter says otherwise, the
// root disk is never written to.
//
// It also sends the kernel's log and what programs write to /dev/log to the
// host's LogCollector.
//
// It decides nothing about VMs: the host composes its verbs. How Linux does
// each of them is guest/core's business.
package maitred
