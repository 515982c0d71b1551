// Package vsock carries byte streams between the host and its guests, in both
// directions, with the guest's identity attached to every stream.
//
// Two transports exist. In user mode a vhost-user backend serves the guest's
// AF_VSOCK and shows the host one Unix socket per VM in a private directory:
// the host dials it and asks for a port with a CONNECT line, and what the
// guest dials arrives on a socket named after the port. In kernel mode both
// ends are AF_VSOCK sockets, which any local user can dial, so our guest
// agents accept host streams from reserved source ports only.
//
// The package knows nothing of what the streams carry. Host daemons, clients
// and guest agents use it; it imports none of them.
package vsock
