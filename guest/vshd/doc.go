// Package vshd serves shells inside a guest: each stream carries one session
// of ChromeOS's vsh protocol, which starts one process, on a pseudo terminal
// or on pipes, and ends with its exit code.
//
// The package owns the processes of its sessions until they end. It trusts the
// far end, which is the guest's host: whoever may open a stream may run
// anything as anybody that the server may be. Who that is, the transport decides.
// guest/cmd/vshd serves it as root on vsock port 9001 of a VM; in a container,
// as its user, it serves one session on a stream that it dialled to the host
// because the host asked the container's agent for that.
//
// # Decisions
//
// Input. Frames are taken off the stream as they come, so that a signal or a
// new window size overtakes input that the process does not read; that input
// waits in memory, up to 2 MiB at rest and as much again on its way to the
// process. Beyond that the stream is left alone, which holds the client back,
// and a signal waits too. While it is left alone a client that hangs up is
// noticed all the same, as far as the transport tells.
//
// Output. A process is held back when its client does not read. After the
// process has exited, what its pipes or terminal hold is sent in full; a
// background process that keeps them open is waited for until it has been
// silent for 200 ms, and for one second of waiting or one more MiB at most.
//
// Hang-up. When the client goes away, the session's process group gets SIGHUP
// (on a terminal, from the kernel: its foreground group), and whatever is left
// in the session after three seconds is killed. A process that made a session
// of its own (setsid) has left and lives on; so does, after an orderly exit,
// whatever the process left in the background.
package vshd
