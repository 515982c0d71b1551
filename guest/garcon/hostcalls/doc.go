// Package hostcalls is the way from a container to its host: the calls of
// ContainerListener on the host's vsock port 8889, with the token by which the
// host knows the container, and queues for notices whose order counts.
//
// A Client's methods are single attempts with a deadline, on one connection
// that is made again when it is lost. What must arrive later, when the host is
// there again, goes into a Queue. The package never reads what it is given and
// never calls anything but the host.
package hostcalls
