// Package testhost is a machine with systemd to try things on: a Debian in a
// virtual machine that needs no special hardware and can itself run virtual
// machines. packaging/testhost builds it; here it is started, told what to do,
// and taken away, whatever becomes of the program that started it.
//
// Nothing in it outlives a Host but a Reboot, and no two hosts share anything.
package testhost
