// Package hosttest shows the whole system at work on a real machine with
// systemd, in the test host: the packages are installed, users log in, VMs run
// on KVM, and everything else that needs what a private bus has not. One machine
// is started for all of it, so the tests are steps of one.
package hosttest
