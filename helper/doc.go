// Package helper is the part of Auberge that has privileges, and the way to
// ask it. vm_concierge has none: what it cannot do itself, a small process
// does for it, by one of a few fixed verbs.
//
// A request is one JSON packet on a Unix SOCK_SEQPACKET connection, the answer
// one more, with a descriptor beside it. The server believes its peer's uid,
// which the kernel tells, and nothing else: vm_concierge reads what strangers
// send, and one that was taken over must gain no more than the verbs give. It
// opens no file as root or as a system user, looks up a user's groups itself,
// dials nothing but guests, and is bounded in everything that is asked of it.
// Each use is one line in the log.
//
// The package knows neither VMs nor the bus; vm_concierge's main gives its
// Client to those who need one of its methods.
package helper
