// Package garcon is the agent in a container, in the session of its user: it
// answers the host's calls (Garcon) on a vsock port of its own and tells the
// host what happens in the container (ContainerListener, package hostcalls).
//
// The package joins the parts, each a package beneath it: applications, icons,
// MIME types, packages, playbooks, file watches. It trusts the host, to which
// the container belongs, and nothing in the container that another user than
// its own could have written. It never needs a privilege: what does is asked of
// PackageKit on the system bus.
package garcon
