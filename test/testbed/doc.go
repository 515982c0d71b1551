// Package testbed makes a private part of this machine in which Auberge runs
// as on a real one: users of its own, a dbus-daemon with our policy files, and
// the daemons, each as its own user. End-to-end tests and make run use it.
//
// As root, Enter puts the program into a mount and a PID name space of its
// own, in which a few users exist in a private copy of /etc/passwd. Every
// process that is started there, VMs included, ends with the program, however
// that ends. Without root there is just the one user.
package testbed
