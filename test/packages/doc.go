// Package packages tests what `make packages` leaves: that the packages hold
// what `make install` installs, that Debian's and rpm's own tools accept them,
// that the same source gives the same bytes without a network, and that they
// come and go cleanly on a Debian whose systemd does not run. Where it runs is
// the test host's matter.
package packages
