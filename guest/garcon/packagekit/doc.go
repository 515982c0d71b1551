// Package packagekit asks PackageKit, on the container's system bus, for
// packages: what one is, which one a file belongs to, to install and to remove.
// Installing and removing go on after the call that began them, one at a time,
// and report to a Reporter, whose last message of each is the only final one.
//
// Each operation has a bus connection and a PackageKit transaction of its own,
// addressed by the daemon's unique name, so that a daemon that dies takes its
// transactions with it and is never taken for its successor. What it sends is
// foreign: bounded, and read without trust in its types.
package packagekit
