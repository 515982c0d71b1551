// Package wire is gRPC with guests: connections that last as long as there are
// calls, and servers for what one guest sends, with everything bounded that a
// guest could make large, many or endless.
package wire

const (
	// MaxHeaders bounds the headers of a call, in bytes; gRPC's own limit is
	// 16 MiB per call.
	MaxHeaders = 16 << 10
	// Buffer is what a connection holds, in bytes, also while nothing is said;
	// gRPC's own are eight times as large.
	Buffer = 4 << 10
)
