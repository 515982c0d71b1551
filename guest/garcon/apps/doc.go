// Package apps is what the host sees of the applications in a container: the
// list of them, kept up to date, their icons, and starting them.
//
// The list is told whole whenever it changes: what is passed on is decided by
// package desktop, the first valid file of an id counts. Changes are gathered
// for three seconds, and the host hears before and after that lists are to
// come. Everything is bounded: files, directories, bytes read, the message.
//
// Programs that it starts live on when the agent ends; until then it waits for
// each of them.
package apps
