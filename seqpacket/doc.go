// Package seqpacket carries requests between processes of one machine: packets
// of a Unix SOCK_SEQPACKET socket with descriptors beside them, bounded on both
// ends, and who is at the other end as the kernel says. It does not know what
// the packets hold.
package seqpacket
