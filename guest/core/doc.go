// Package core is what every guest agent that runs as PID 1 needs from Linux:
// processes and their reaping, supervised services, mounts, the root disk, the
// network, time, storage, and the log that the host sees on the console.
//
// It knows nothing of any wire protocol and never decides when a VM starts or
// stops; guest/maitred does, and is the only caller so far. Nothing in it may
// be used on a host: several calls act on the whole machine.
package core
