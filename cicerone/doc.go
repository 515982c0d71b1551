// Package cicerone owns what happens inside VMs: their containers, the agents
// in them, and the operations that somebody asked of those. It relays calls to
// the agents and what they report to the owner, and keeps enough on disk to
// know VMs, containers and operations again after a restart.
//
// The package sees no bus. What it needs of the outside it declares as small
// interfaces; who may call what has been decided when a call arrives, and a
// request comes with the Subject it is for. An error returned by a method is
// meant for the caller to read. Guests are not trusted: one is known by the
// endpoint on which it calls, a container by its token, and whatever they send
// is bounded.
package cicerone
