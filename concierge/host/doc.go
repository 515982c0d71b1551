// Package host tells what guests should know of the machine they run on: its
// time zone, its name servers, and that its network has become another one. It
// reads and watches files and the routing table; it changes nothing.
package host
