// Package policy decides who may do what: it reads owner words and VM names,
// says whether a caller has the right that a method needs, and opens files
// with a caller's rights instead of the daemon's.
//
// Decisions are made from plain values. The package sees no D-Bus type; the
// bus tells it who the caller is, the method table which right is needed.
// The bus policy files that belong to these rules are in policy/bus.
package policy
