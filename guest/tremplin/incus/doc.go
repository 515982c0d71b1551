// Package incus speaks to an Incus server over the REST API on its Unix
// socket: as much of it as running a VM's containers takes. It knows nothing of
// what the containers are for.
package incus
