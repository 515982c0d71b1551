// Package tremplin is the agent that keeps a VM's containers: it answers the
// host's vm_tools.tremplin.Tremplin and tells the host's TremplinListener how
// things go. Incus does the containers' part, over its REST API; tremplin
// starts it on demand and keeps it running.
//
// It trusts the host, and neither images, archives nor what is in containers.
package tremplin
