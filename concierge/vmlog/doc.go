// Package vmlog keeps a log per VM: lines of text in a few files of bounded
// size, written by the host and on behalf of the guest, and read whole, from
// the end or as they come.
//
// What a guest says is foreign: one record is one line, whatever is in it, and
// a guest that says too much is slowed down and then refused. A log that
// cannot be written costs lines, which are counted and reported in the log as
// soon as that is possible again, and never anything else.
//
// The package knows paths and neither owners nor VMs; who may read what is
// decided before.
package vmlog
