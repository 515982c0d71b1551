// Package dbus is the bus side of Auberge's daemons: it owns the connection,
// the method tables, the payload codec, descriptors, who the caller is, and
// signals with their audience. It holds no VM state and decides no rights
// beyond what a method's table entry and package policy say.
//
// Daemons build a [Server] from tables ([ConciergeService],
// [Concierge1Interface]) and run it. Domain packages never import this
// package; they implement the handler interfaces declared here, or are
// adapted to them by the daemon's main.
//
// The transport is our own. godbus decodes a whole message before any handler
// sees it and handles byte arrays byte by byte, so one 31 MiB message stalls
// its connection for seconds; and its decoder never returns from a variant
// that holds an empty struct, which not every bus refuses. Here sizes are
// enforced from a message's fixed header, payloads are slices of the message,
// and what callers send is decoded by a few small readers. godbus encodes our
// own plain-typed answers and decodes the bus driver's.
package dbus
